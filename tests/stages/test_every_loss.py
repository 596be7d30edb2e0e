"""Every loss at once, on the tiny experiment: they train together, resume to the same bits, and fill a bench's table."""

import os

import pytest
import torch
import yaml

from bench import methods
from pipeline import config, lookup

TARGETS = {
    "graph": dict(type="affinity", layer="high"),
    "attention": dict(type="attention", layer="high"),
    "logits": dict(type="logits"),
    "top": dict(type="top_classes", count=2),
    "similarity": dict(type="class_similarity", layer="high"),
    "pairs": dict(type="pairwise", layer="high"),
    "flow": dict(type="gram", channels=16),
    "sketch": dict(type="sketch", size=64),
    "features": dict(type="features", layer="mid"),
    "components": dict(type="components", layer="high", rank=8),
    "anchors": dict(type="anchors", layer="high", count=32),
}
KEYS = {
    "kd": dict(temperature=1.0),
    "cwd": dict(temperature=4.0, ramp=6),
    "cwd_features": dict(temperature=4.0),
    "bpkd": dict(temperature=1.0),
    "dkd": dict(temperature=2.0, start=3, ramp=6),
    "fitnet": dict(normalise="teacher"),
    "sad": dict(normalise="l2", start=6),
}


def every_term():
    """One entry a file of pipeline/losses, which reads whatever it can of the targets above; small weights."""
    for name in lookup.names("losses"):
        types = lookup.find_class("losses", name).reads_types
        reads = [target for target, entry in TARGETS.items() if entry["type"] in types]
        if types and not reads:
            continue  # needs a teacher or a dataset that the tiny experiment has not
        terms = [[read] for read in reads] if name in ("kd", "cirkd", "fitnet") else [reads]
        for part in terms:
            yield dict(loss=name, reads=part, weight=1e-3, **KEYS.get(name, {}))


@pytest.fixture
def combined(experiment):
    experiment.change(targets=TARGETS, methods={"every": list(every_term())}, training={"steps": 9})
    experiment.do("cache-teacher")
    return experiment


def test_every_loss_at_once_resumes_to_the_same_bits(combined, power_cut):

    assert combined.train("every").exit_code == 0
    run = combined.folder / "runs/toy/erfnet-every-0"
    unbroken = {name: (run / name).read_bytes() for name in ("weights.safetensors", "curves.tsv", "norms.tsv")}
    state = torch.load(run / "checkpoint.pt", weights_only=True)["losses"]
    run.rename(run.with_name("unbroken"))
    with power_cut(7):  # between two checkpoints, with all but `sad` begun
        assert combined.train("every").exit_code == 130
    assert combined.train("every").exit_code == 0
    assert {name: (run / name).read_bytes() for name in unbroken} == unbroken
    again = torch.load(run / "checkpoint.pt", weights_only=True)["losses"]
    assert state and all(torch.equal(state[name], again[name]) for name in state)
    logged = unbroken["curves.tsv"].decode().split("\n")[-2].split("\t")
    assert len(logged) == 2 + len(list(every_term())) and all(float(value) == float(value) for value in logged)


def test_the_bench_makes_one_table_of_all_terms_and_goes_on_where_it_stopped(combined, monkeypatch, capsys):
    monkeypatch.chdir(combined.folder)
    monkeypatch.setattr("sys.argv", ["methods", "toy.yaml", "--only", "every", "--batches", "1"])
    methods.main()
    first = capsys.readouterr().out
    rows = [line.split(" | ") for line in first.splitlines() if line.startswith("| ") and "`" in line]
    terms = config.load(combined.config).method("every")
    assert [row[2].strip("`") for row in rows] == [term.loss.name for term in terms]
    for row, term in zip(rows, terms):
        if term.reads:  # components: 8 of 64; the gradients of two losses are made of maxima and of signs, which small errors move
            most = 0.1 if "components" not in row[3] else 1 if row[2].strip("`") in ("af_dcd", "wavelet") else 0.5
            assert float(row[11]) <= 1 and float(row[10]) < most, row
        assert int(row[4].replace(",", "")) > 0 if term.reads else row[3] == "-"
    trained = os.stat("runs/toy/erfnet-every-0/checkpoint.pt").st_mtime_ns
    methods.main()
    assert capsys.readouterr().out == first
    assert os.stat("runs/toy/erfnet-every-0/checkpoint.pt").st_mtime_ns == trained


def test_every_loss_is_in_the_benchs_file_or_has_a_reason_not_to_be():
    raw = yaml.safe_load((methods.DEFAULT).read_text())
    used = {term["loss"] for terms in raw["methods"].values() for term in terms}
    assert set(lookup.names("losses")) - used == set(methods.ELSEWHERE)
