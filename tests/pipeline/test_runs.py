import json

import pytest
import torch
from test_engine import step

from pipeline import lookup, records
from pipeline.errors import PipelineError
from pipeline.files import plain
from pipeline.training import run as runs


def test_code_digests_follow_what_a_plugin_takes_from_other_plugin_files(monkeypatch):
    resnet, shared = lookup.find("models", "resnet18"), lookup.find("models", "resnet50")
    before = records.code_digest(resnet)
    assert before == records.code_digest(resnet, resnet) != records.code_digest(shared)
    whole = records.source
    monkeypatch.setattr(records, "source", lambda name: whole(name) + ("\nx = 1" if name.endswith("_resnet") else ""))
    assert records.code_digest(resnet) != before


def test_a_record_survives_json_unchanged(tmp_path):
    from pipeline.config import Photometric
    record = plain({"a": (1, 2), "b": Photometric(brightness=0.1, contrast=0.0, noise=0.0), "c": tmp_path})
    assert record == json.loads(json.dumps(record)) and record["a"] == [1, 2] and record["b"]["brightness"] == 0.1


def test_set_aside_folders_never_overwrite_each_other(tmp_path, capsys):
    for number in range(3):
        runs.Run(tmp_path / "run", {"number": number}).open()
        (tmp_path / "run" / "mine").write_text(str(number))
    assert (tmp_path / "run.before-1" / "mine").read_text() == "0"
    assert (tmp_path / "run.before-2" / "mine").read_text() == "1"
    assert capsys.readouterr().err.count("set aside") == 2


@pytest.mark.parametrize("names", [1, 4])
def test_curves_are_drawn_one_panel_a_term(tmp_path, names):
    curves = [{"step": s, **{f"term {n}": s * n for n in range(names)}} for s in range(5)]
    runs.draw_curves(tmp_path / "curves.png", curves)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("broken", ["model", "mean"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, broken):
    """A finite loss may have a gradient that is not; at the last step no further loss would tell."""
    run, mine = runs.Run(tmp_path / "run", {}), step(ema=0.9)
    run.open()
    run.save(mine, 1)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        {"model": mine.model.state_dict(), "mean": mine.mean}[broken]["second.bias"][1] = torch.nan
    with pytest.raises(PipelineError, match="step 1: the weights are not finite"):
        run.save(mine, 2)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
