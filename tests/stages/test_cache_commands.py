"""`pipeline verify` of a folder and with --repair, and `pipeline cache list | pull | rm`, by their exit codes, words and files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.store import Store
from pipeline.store.verification import verify

GOLDEN = Path(__file__).parents[1] / "golden/store-v1/raw"
NOT_COMPARED = {"history.jsonl", ".lock", ".in-use"}


def invoke(*arguments, folder=None, **options):
    """The click result of `pipeline ARGUMENTS`; bugs keep their traceback."""
    before = os.getcwd()
    os.chdir(folder or before)
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED and not path.name.endswith(".tmp")
    }


def chunks(folder):
    return sorted(path for path in folder.rglob("c.*") if "_crc" not in path.parent.name)


def flip(path, position=5):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path):
    """A small store of two passes, two views, five images in two blocks, below a root."""
    shutil.copytree(GOLDEN, tmp_path / "cache")
    (folder,) = (tmp_path / "cache/roads").glob("targets-*")
    return folder


# verify FOLDER


def test_a_whole_store_is_verified_without_its_teacher_and_its_values_are_printed(store):
    result = invoke("verify", store)
    assert result.exit_code == 0 and "5 images, 8 of 8 blocks filled, 0 faults" in result.stdout
    group = zarr.open_group(store / "targets.zarr", mode="r")
    checked = 0
    for line in result.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "/" in cells[0] and len(cells) == 7:
            rows = np.concatenate([group[f"v00{view}/{cells[0]}"][:][[0, 1, 2, 4, 5]] for view in (0, 1)]).astype(np.float64)
            zero = int((rows.reshape(len(rows), -1) == 0).all(axis=1).sum())
            assert cells[2] == "10" and cells[6].split()[0] == str(zero)
            assert cells[3:6] == [f"{value:.4g}" for value in (rows.min(), rows.mean(), rows.max())]
            checked += 1
    assert checked == 5


def test_verify_of_the_structure_reads_no_rows(store, tmp_path):
    bad = chunks(store)[0]
    flip(bad)
    result = invoke("verify", store, "--structure")
    assert result.exit_code == 0 and "8 of 8 blocks filled, 0 faults; rows were not read" in result.stdout
    bad.write_bytes(bad.read_bytes()[:-1])
    result = invoke("verify", store, "--structure")
    assert result.exit_code == 1 and str(bad) in result.stderr
    for wrong in ((store, "--structure", "--repair"), (tmp_path / "a.yaml", "--structure")):
        assert "--structure takes the folder of a store" in invoke("verify", *wrong).stderr


def test_rows_of_zeros_are_counted_and_named(store):
    opened = Store.open(store)
    folder = next(pass_ for pass_ in opened.stored_passes() if pass_.startswith("kinds"))
    ids = [image.id for image in opened.block_images(1)]
    for name in ("code", "code_crc"):  # as a fill would have written zeros
        array = opened.arrays("v000", folder)[name]
        (store / array.chunk_path(1)).unlink()
    from pipeline.store import ArrayGroup
    from pipeline.targets.base import Field

    content = opened.pass_file(folder)
    pass_ = ArrayGroup(
        "kinds",
        content["record"],
        {name: Field(tuple(field["shape"]), field["dtype"], tuple(field["dims"])) for name, field in content["fields"].items()},
    )
    rows = {name: np.ones((2, *field.shape), field.dtype) for name, field in pass_.fields.items()}
    opened.write_block(pass_, 0, 1, rows | {"code": np.zeros((2, 7), "int32")})
    opened.finalise()
    result = invoke("verify", store)
    assert result.exit_code == 0 and f"| 2 ({ids[0]}, {ids[1]}) |" in result.stdout


@pytest.mark.parametrize("harm", ["chunk", "crc", "mark", "zarr.json", "pass", "manifest.json", "history.jsonl", "stray", "lost"])
def test_any_fault_of_a_folder_is_named_and_exit_code_1(store, harm):
    paths = {
        "chunk": chunks(store)[0],
        "crc": next(store.rglob("graph_crc/c.*")),
        "mark": next(store.rglob("done/*/*.json")),
        "zarr.json": next(store.rglob("graph/zarr.json")),
        "pass": next(store.glob("passes/*.json")),
        "stray": store / "images/note.txt",
        "lost": chunks(store)[-1],
    }
    path = paths.get(harm, store / harm)
    path.write_text("x") if harm == "stray" else path.unlink() if harm == "lost" else flip(path)
    result = invoke("verify", store)
    assert result.exit_code == 1 and str(path) in result.stderr
    assert all(line.startswith("Error: ") for line in result.stderr.splitlines())


def test_a_store_that_is_not_filled_is_no_whole_store(store):
    for mark in store.glob("done/v001/000001.*.json"):
        mark.unlink()
    (store / "manifest.json").unlink()
    result = invoke("verify", store)
    assert result.exit_code == 1 and "1 of 2 blocks of" in result.stderr and "are not filled" in result.stderr


def test_no_folder_no_store_and_recompute_of_a_folder_are_refused(store, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "store.json" in invoke("verify", tmp_path / "empty").stderr
    assert "no such file" in invoke("verify", tmp_path / "nowhere.yaml").stderr
    assert invoke("verify", store, "--recompute", "3").exit_code == 2


# --repair


def test_repair_of_a_folder_mends_metadata_and_makes_bad_blocks_missing(store):
    before = content(store)
    flip(next(store.rglob("graph/zarr.json")))
    next(store.rglob("scale_crc/zarr.json")).unlink()
    (store / "manifest.json").write_bytes(b"{}")
    history = (store / "history.jsonl").read_bytes()
    (store / "history.jsonl").write_bytes(history + b'{"torn')
    result = invoke("verify", store, "--repair")
    assert result.exit_code == 0 and "written again" in result.stdout
    assert content(store) == before and (store / "history.jsonl").read_bytes().startswith(history)
    bad = chunks(store)[0]
    flip(bad)
    result = invoke("verify", store, "--repair")
    assert result.exit_code == 1 and "is to be filled again" in result.stdout and "1 of 2 blocks" in result.stderr
    opened = Store.open(store)
    assert sum(opened.fault(view, folder, block) is not None for view, folder in opened.stored_groups() for block in (0, 1)) == 1


def test_repair_with_a_config_recomputes_only_the_bad_blocks_and_ends_in_the_same_bytes(experiment):
    stores = [experiment.store("prepared"), experiment.store("targets")]
    before = [content(store) for store in stores]
    marks = {path: path.stat().st_mtime_ns for store in stores for path in store.rglob("done/*/*.json")}
    prepared, targets = stores
    (array,) = Store.open(targets).arrays("v001", next(targets.glob("passes/attention*")).stem).keys() & {"energy"}
    attention = next(targets.glob("targets.zarr/v001/attention-*")) / array
    flip(attention / "c.0.0.0")  # a block of one target,
    flip(next(targets.glob("done/v002/000001.*.json")))  # a mark,
    flip(next(prepared.rglob("image/c.0.*")))  # prepared pixels,
    flip(next(targets.glob("passes/logits-*.json")))  # and metadata, of a pass,
    flip(next(targets.rglob("graph/zarr.json")))  # and of an array
    assert experiment.run("verify").exit_code == 1
    result = experiment.run("verify", "--repair")
    assert result.exit_code == 0 and "whole and undamaged" in result.stdout, result.output
    assert [content(store) for store in stores] == before
    again = [path for path, time in marks.items() if path.stat().st_mtime_ns != time]
    assert len(again) == 3
    assert json.loads((targets / "history.jsonl").read_text().splitlines()[-1])["action"] in ("finalise", "repair")


# cache list, pull, rm


def test_list_shows_every_store_its_fill_state_and_its_size(store, tmp_path):
    other = shutil.copytree(store, store.with_name("targets-0123456789ab"))
    next(other.glob("done/v001/*.json")).unlink()
    broken = shutil.copytree(store, store.with_name("prepared-0123456789ab"))
    flip(broken / "store.json")
    result = invoke("cache", "list", folder=tmp_path)
    assert result.exit_code == 0
    lines = {line.split("|")[3].strip(): line for line in result.stdout.splitlines() if line.startswith("| roads")}
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    day = json.loads((store / "history.jsonl").read_text().splitlines()[-1])["time"][:10]
    teacher = Store.open(store).identity["record"]["teacher"]
    assert (
        f"| roads | targets | {store.name[8:]} | no configuration here | {teacher['name']} {teacher['weights'][:8]} "
        f"| affinity, kinds | 5 | 2 | all | {day} | {size / 1e3:.1f} kB |"
    ) in lines.values()
    assert "7/8 blocks" in result.stdout and "damaged" in result.stdout
    assert "no stores" in invoke("cache", "list", "--root", tmp_path / "nothing").stdout
    assert invoke("cache", "list", "--root", "cache", folder=tmp_path).stdout == result.stdout
    assert invoke("cache", "list", env={"PIPELINE_CACHE_ROOT": "cache"}, folder=tmp_path).stdout == result.stdout


def test_rm_asks_and_removes_just_that_store(store):
    other = shutil.copytree(store, store.with_name("targets-0123456789ab"))
    before = content(store)
    assert invoke("cache", "rm", store, input="n\n").exit_code == 1 and content(store) == before
    assert invoke("cache", "rm", store, input="y\n").exit_code == 0 and not store.exists()
    assert content(other) == before
    assert invoke("cache", "rm", other, "--yes").exit_code == 0 and not other.exists()


def test_rm_refuses_what_is_no_store(store, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "store.json").write_text("{}")
    for folder in (mine, store.parent, tmp_path / "cache", store / "images", tmp_path / "nowhere"):
        result = invoke("cache", "rm", "--yes", folder)
        assert result.exit_code == 1 and "nothing was removed" in result.stderr
    assert mine.exists() and (store / "store.json").exists()


def test_pull_brings_whole_blocks_and_goes_on_where_it_stopped(store, tmp_path):
    bad = chunks(store)[-1]
    data = bad.read_bytes()
    flip(bad)
    result = invoke("cache", "pull", tmp_path / "cache", tmp_path / "here")
    ours = tmp_path / "here/roads" / store.name
    assert result.exit_code == 1 and str(bad) in result.stderr
    assert verify(Store.open(ours)) == []  # what came can be used
    times = {path: path.stat().st_mtime_ns for path in ours.rglob("done/*/*.json")}
    bad.write_bytes(data)
    result = invoke("cache", "pull", store, tmp_path / "here")
    assert result.exit_code == 0 and "8 of 8 blocks" in result.stdout
    assert content(ours) == content(store) and 0 < len(times) < 8
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_pull_can_take_some_views_and_refuses_another_store_in_the_place(store, tmp_path):
    assert "4 of 4 blocks" in invoke("cache", "pull", store, tmp_path / "here", "--views", "1").stdout
    ours = tmp_path / "here/roads" / store.name
    assert {view for view, _ in Store.open(ours).stored_groups()} == {"v000"} and verify(Store.open(ours)) == []
    shutil.rmtree(store)
    shutil.copytree(GOLDEN.parent / "zstd/roads" / store.name, store)
    result = invoke("cache", "pull", store, tmp_path / "here")
    assert result.exit_code == 1 and "codec: 'raw' here, 'zstd' asked for" in result.stderr
    assert "no store" in invoke("cache", "pull", tmp_path / "nowhere", tmp_path / "here").stderr
