"""Stores, lists, ids and names from elsewhere, made to lead out of their folder, on every command that reads or removes: each is
refused in one line, and nothing outside is read, written or removed."""

import json
import os
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from google_crc32c import value as crc32c
from test_cache_commands import GOLDEN
from test_cache_commands import invoke as invoked

import pipeline
from pipeline import config
from pipeline.config import load
from pipeline.datasets import apolloscape, camvid, culane
from pipeline.deployment.outputs import save
from pipeline.errors import ConfigError, DatasetError, PipelineError, StoreError
from pipeline.identity import identity_digest
from pipeline.metrics import base as metrics
from pipeline.metrics import culane as culane_metric
from pipeline.metrics.base import Answer
from pipeline.reporting import study
from pipeline.store import ImageRow, Store
from pipeline.store.files import check_and_parse, images_tsv, parse_images, with_checksum
from pipeline.store.verification import verify

# What happens outside: every file that is opened, listed, made, renamed or removed there, through whatever link

_watched = []  # (folder, events)


def _watch(event, args):
    if not _watched or event not in ("open", "os.scandir", "os.listdir", "os.mkdir", "os.remove", "os.rmdir", "os.rename"):
        return
    folder, events = _watched[0]
    for path in args[:2] if event == "os.rename" else args[:1]:
        if isinstance(path, (str, os.PathLike)):
            removes = (
                event in ("os.remove", "os.rename", "os.rmdir") or event == "open" and args[1] is None and args[2] & os.O_NOFOLLOW
            )
            path = (
                os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) if removes else os.path.realpath(path)
            )
            writes = event == "open" and isinstance(args[1], str) and args[1][0] in "wa"  # by `no_link`, which opens it after
            if f"{path}/".startswith(f"{folder}/") and not writes:
                events.append((event, path))


sys.addaudithook(_watch)


def snapshot(folder):
    """Every file, folder and link below, and what it holds; nothing that a link leads to."""

    def content(path):
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""

    return {str(path): (path.lstat().st_mtime_ns, content(path)) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def outside(tmp_path):
    """A folder with somebody's files. The test fails if any of them is touched, or anything comes in."""
    folder = tmp_path / "outside"
    (folder / "folder").mkdir(parents=True)
    for name in ("mine.txt", "folder/000000.tsv", "folder/c.0", "zarr.json"):
        (folder / name).write_text("mine")
    before = snapshot(folder)
    _watched.append((os.path.realpath(folder), events := []))
    yield folder
    _watched.clear()
    assert events == [] and snapshot(folder) == before


@pytest.fixture
def store(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "there")
    (folder,) = (tmp_path / "there/roads").glob("targets-*")
    return folder


def invoke(*arguments, **options):
    """Without progress, which a slow machine shows."""
    return invoked("-q", *arguments, **options)


def refused(result):
    """One line a fault, and no more."""
    assert result.exit_code == 1 and result.stderr.strip()
    assert all(line.startswith("Error: ") for line in result.stderr.splitlines()), result.stderr
    return result.stderr


# Ways to make a store hostile


def reseal(path, change):
    content = check_and_parse(path.read_bytes(), path)
    change(content)
    path.write_bytes(with_checksum(content))


def mark_with(names):
    def harm(store, outside):
        data = b"theirs"
        entry = [len(data) + 4, f"{crc32c(data):08x}"]
        for mark in store.glob("done/*/*.json"):
            reseal(mark, lambda content: content["files"].update({str(name).format(outside=outside): entry for name in names}))

    return harm


def mark_files(value):
    def harm(store, outside):
        for mark in store.glob("done/*/*.json"):
            reseal(mark, lambda content: content.update(files=value(content["files"])))

    return harm


def field_named(name):
    def harm(store, outside):
        path = next(store.glob("passes/*.json"))
        reseal(
            path, lambda content: content["fields"].update({name.format(outside=outside): next(iter(content["fields"].values()))})
        )

    return harm


def field_with(**values):
    def harm(store, outside):
        path = next(store.glob("passes/*.json"))
        reseal(path, lambda content: next(iter(content["fields"].values())).update(values))

    return harm


def raw_pass(body):
    def harm(store, outside):
        from pipeline.identity import sha256

        next(store.glob("passes/*.json")).write_bytes(f'{body}, "checksum": "{sha256(body.encode())}"}}\n'.encode())

    return harm


def head_with(**values):
    def harm(store, outside):
        reseal(
            store / "store.json",
            lambda content: content.update(
                {name: value.format(outside=outside) if isinstance(value, str) else value for name, value in values.items()}
            ),
        )

    return harm


def image_called(image_id):
    def harm(store, outside):
        path = store / "images/000000.tsv"
        rows = parse_images(path.read_bytes(), path)
        rows[0] = ImageRow(image_id.format(outside=outside), rows[0].image_digest, rows[0].label_digest)
        path.write_bytes(images_tsv(rows))

    return harm


def too_many_images(store, outside):
    (store / "images/000000.tsv").write_bytes(images_tsv([ImageRow(str(number), "0", "-") for number in range(100)]))


def manifest_with(change):
    def harm(store, outside):
        reseal(store / "manifest.json", lambda content: change(content["passes"]))

    return harm


def one_view_of(passes):
    return next(iter(next(iter(passes.values())).values()))


def linked(pattern, target):
    """The first file or folder of the pattern becomes a link."""

    def harm(store, outside):
        path = sorted(store.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(outside / target)

    return harm


def added_link(name, target):
    def harm(store, outside):
        (store / name).symlink_to(outside / target)

    return harm


def pipe(store, outside):
    path = sorted(store.glob("targets.zarr/v000/*/*/c.0*"))[0]
    path.unlink()
    os.mkfifo(path)


def noted(text):
    def harm(store, outside):
        (store / "sources.tsv").write_text(text.format(outside=outside))

    return harm


UP = "../../../../../../outside"
TEXTS = {
    "mark, absolute": mark_with(["{outside}/made"]),
    "mark, upward": mark_with([f"targets.zarr/v000/{UP}/made", "../../../outside/made"]),
    "mark, over the store": mark_with(["store.json"]),
    "mark, another block's": mark_files(lambda files: {name.replace("c.0", "c.1"): value for name, value in files.items()}),
    "mark, no files": mark_files(lambda files: {}),
    "mark, a list": mark_files(list),
    "mark, sizes": mark_files(lambda files: {name: ["1", crc] for name, (_, crc) in files.items()}),
    "mark, less": mark_files(lambda files: {name: [5, crc] for name, (_, crc) in files.items()}),
    "mark, crcs": mark_files(lambda files: {name: [size, "../../x"] for name, (size, _) in files.items()}),
    "field, upward": field_named(f"{UP}/made"),
    "field, absolute": field_named("{outside}/made"),
    "field, backslash": field_named("..\\made"),
    "field, newline": field_named("a\nError: b"),
    "field, NUL": field_named("a\0b"),
    "field, crc": field_named("graph_crc"),
    "field, codec": field_with(codecs=[{"name": "pickle"}]),
    "field, dtype": field_with(dtype="object"),
    "field, shape": field_with(shape=[2, -3]),
    "field, rows": field_with(chunk_rows=0),
    "field, none": raw_pass('{"fields": {}'),
    "pass, no JSON": raw_pass("{1"),
    "pass, deep": raw_pass('{"fields": ' + "[" * 100_000),
    "head, kind": head_with(kind="../../../outside/folder"),
    "head, kind absolute": head_with(kind="{outside}/folder"),
    "head, digest": head_with(identity={"digest": "../../x", "record": {}}),
    "head, record": head_with(identity=5),
    "head, block rows": head_with(block_rows=-4),
    "head, codec": head_with(codec="../x"),
    "head, card": head_with(card=None),
    "image, upward": image_called("../../outside/mine"),
    "image, absolute": image_called("{outside}/mine"),
    "image, drive": image_called("C:/mine"),
    "image, backslashes": image_called("..\\..\\mine"),
    "images, too many": too_many_images,
    "notes, upward": noted("../../outside/mine\t5:5\n"),
    "notes, no note": noted("x\n"),
}
MANIFESTS = {
    "view": manifest_with(lambda passes: passes[next(iter(passes))].update({f"{UP}/folder": one_view_of(passes)})),
    "pass": manifest_with(lambda passes: passes.update({f"{UP}/x-00000000": next(iter(passes.values()))})),
    "blocks": manifest_with(lambda passes: one_view_of(passes).update(blocks=[[0, 10**15]])),
    "no blocks": manifest_with(lambda passes: one_view_of(passes).update(blocks="all")),
    "no passes": manifest_with(lambda passes: passes.update(x=3)),
}
LINKS = {
    "chunk": linked("targets.zarr/v000/*/*/c.0*", "mine.txt"),
    "crc chunk": linked("targets.zarr/v000/*/*_crc/c.0", "folder/c.0"),
    "array": linked("targets.zarr/v000/*/*_crc", "folder"),
    "pass folder": linked("targets.zarr/v000/*-*", "folder"),
    "view": linked("targets.zarr/v000", "folder"),
    "zarr": linked("targets.zarr", "folder"),
    "zarr.json": linked("targets.zarr/v000/*/*/zarr.json", "zarr.json"),
    "zarr.json, nothing there": linked("targets.zarr/v001/*/*/zarr.json", "made"),
    "mark": linked("done/v000/*.json", "mine.txt"),
    "marks": linked("done/v000", "folder"),
    "done": linked("done", "folder"),
    "pass file": linked("passes/*.json", "mine.txt"),
    "passes": linked("passes", "folder"),
    "images": linked("images", "folder"),
    "image list": linked("images/000000.tsv", "folder/000000.tsv"),
    "head": linked("store.json", "mine.txt"),
    "manifest": linked("manifest.json", "mine.txt"),
    "history": linked("history.jsonl", "mine.txt"),
    "history, nothing there": linked("history.jsonl", "made"),
    "card": added_link("card.json", "mine.txt"),
    "notes": added_link("sources.tsv", "mine.txt"),
    "skipped": added_link("skipped.tsv", "mine.txt"),
    "stray": added_link("images/note.txt", "mine.txt"),
    "stray folder": added_link("targets.zarr/v009", "folder"),
}
NOT_PULLED = {"manifest", "history", "history, nothing there", "stray", "stray folder"}  # what a pull leaves where it is


@pytest.mark.parametrize("harm", [*TEXTS, *MANIFESTS])
@pytest.mark.parametrize("mend", [False, True])
def test_verify_refuses_text_that_leads_out_and_repair_makes_nothing_of_it(store, outside, harm, mend):
    (TEXTS | MANIFESTS)[harm](store, outside)
    result = invoke("verify", store, *["--repair"] * mend)
    if mend and harm in MANIFESTS:  # it is written again from what is whole
        assert result.exit_code == 0 and verify(Store.open(store)) == []
    else:
        refused(result)


@pytest.mark.parametrize("harm", TEXTS)
@pytest.mark.parametrize("source", ["folder", "bucket"])
def test_pull_refuses_text_that_leads_out(store, outside, tmp_path, harm, source):
    TEXTS[harm](store, outside)
    url = store.parents[1] if source == "folder" else upload(store.parents[1], outside)
    refused(invoke("cache", "pull", url, tmp_path / "here"))
    (here,) = [*(tmp_path / "here").glob("roads/*")] or [None]
    if here is not None:  # broken off as by a network: of what came, nothing is bad
        assert verify(Store.open(here)) == []
    assert not (tmp_path / "here/outside").exists() and {path.name for path in tmp_path.iterdir()} <= {"there", "here", "outside"}


def upload(root, outside):
    """The files in an object storage in memory, which answers for any key, and one at every key that a join might ask for."""
    import fsspec

    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in root.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/{path.relative_to(root)}", path.read_bytes())
    data = b"theirs" + crc32c(b"theirs").to_bytes(4, "little")
    (folder,) = root.glob("roads/*")
    for key in (f"{outside}/made", f"/bucket/roads/{folder.name}/{outside}/made", f"/bucket/roads/{folder.name}{outside}/made"):
        system.pipe_file(key, data)
    return "memory://bucket"


@pytest.mark.parametrize(
    "name",
    [
        "roads/../targets-0123456789ab",
        "../../targets-0123456789ab",
        "ro\\ads/targets-0123456789ab",
        "roads/targets-0123456789ab\nx",
        "roads/runs",
        ".hidden/targets-0123456789ab",
        "roads/targets-..",
        "roads/prepared-0123456789AB",
    ],
)
def test_a_store_with_another_name_in_a_bucket_is_not_pulled(store, outside, tmp_path, name):
    import fsspec

    upload(store.parents[1], outside)
    system = fsspec.filesystem("memory")
    for key in [key for key in system.store if "/roads/" in key]:
        below = key.partition(f"/roads/{store.name}/")[2]
        system.store[f"/bucket/{name}/{below}"] = system.store.pop(key)
    refused(invoke("cache", "pull", "memory://bucket", tmp_path / "here"))
    refused(invoke("cache", "pull", f"memory://bucket/{name}", tmp_path / "here"))
    assert not (tmp_path / "here").exists() and not [*tmp_path.glob("targets-*")]


@pytest.mark.parametrize(
    "key",
    [
        "targets.zarr/v000/../evil",
        "targets.zarr/v000/..-00000000/x",
        "targets.zarr/v0/x-00000000/y",
        "passes/../x-00000000.json",
        "images/../../x.tsv",
        "targets.zarr/v000/a\nb-00000000/c",
    ],
)
def test_keys_of_a_bucket_that_are_no_names_are_left_there(store, outside, tmp_path, key):
    import fsspec

    upload(store.parents[1], outside)
    fsspec.filesystem("memory").store[f"/bucket/roads/{store.name}/{key}"] = fsspec.filesystem("memory").store[
        f"/bucket/roads/{store.name}/history.jsonl"
    ]
    result = invoke("cache", "pull", "memory://bucket", tmp_path / "here")
    assert result.exit_code == 0 and verify(Store.open(tmp_path / "here/roads" / store.name)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"there", "here", "outside"}


@pytest.mark.parametrize("harm", LINKS)
@pytest.mark.parametrize("mend", [False, True])
def test_verify_refuses_a_link_that_leads_out(store, outside, harm, mend):
    LINKS[harm](store, outside)
    refused(invoke("verify", store, *["--repair"] * mend))


@pytest.mark.parametrize("harm", LINKS)
def test_pull_refuses_a_link_that_leads_out(store, outside, tmp_path, harm):
    LINKS[harm](store, outside)
    result = invoke("cache", "pull", store.parents[1], tmp_path / "here")
    if harm not in NOT_PULLED and not harm.startswith("zarr.json"):  # which follows from the rest
        refused(result)
    for path in (tmp_path / "here").rglob("*"):
        assert not path.is_symlink() and (not path.is_file() or path.read_bytes() != b"mine")


@pytest.mark.parametrize("harm", LINKS)
def test_pull_writes_through_no_link_of_a_store_that_is_here(store, outside, tmp_path, harm):
    shutil.copytree(store.parents[1], tmp_path / "here")
    ours = tmp_path / "here/roads" / store.name
    for mark in sorted(ours.glob("done/v*/*.json"))[1:]:  # so that there is something to write
        mark.unlink()
    LINKS[harm](ours, outside)
    invoke("cache", "pull", store, ours.parents[1])


@pytest.mark.parametrize("name", [".lock", "manifest.json.tmp", "history.jsonl", "mark"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_an_unfinished_file_that_is_a_link_is_not_written_through(store, outside, name, kind):
    mark = sorted(store.glob("done/v000/*.json"))[0]
    path = mark.with_name(f"{mark.name}.tmp") if name == "mark" else store / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(outside / ("mine.txt" if kind == "link" else "made"))
    chunk = next(store.glob("targets.zarr/v000/*/*/c.0*"))
    for chunk in store.glob("targets.zarr/v000/*/*/c.0*"):  # so that there is something to mend
        chunk.write_bytes(b"damaged")
    (store / "manifest.json").unlink()
    refused(invoke("verify", store, "--repair"))


def test_a_pipe_in_the_place_of_a_chunk_is_not_waited_for(store, outside, tmp_path):
    pipe(store, outside)
    assert "neither a file nor a folder" in refused(invoke("verify", store))
    refused(invoke("cache", "pull", store, tmp_path / "here"))


@pytest.mark.parametrize("harm", [*TEXTS, *LINKS, *MANIFESTS])
def test_list_shows_the_others_and_reads_nothing_outside(store, outside, harm):
    other = shutil.copytree(store, store.with_name("targets-0123456789ab"))
    (TEXTS | LINKS | MANIFESTS)[harm](store, outside)
    result = invoke("cache", "list", "--root", store.parents[1], "--configs", "nowhere")
    (line,) = [line for line in result.stdout.splitlines() if f"| {other.name[8:]} |" in line]
    assert result.exit_code == 0 and "| affinity, kinds | 5 | 2 | all |" in line


@pytest.mark.parametrize("harm", [harm for harm in TEXTS if not harm.startswith("notes")] + [*LINKS])
def test_python_and_a_reader_refuse_what_they_would_read(store, outside, harm):
    (TEXTS | LINKS)[harm](store, outside)
    if harm in NOT_PULLED | {"notes", "skipped", "card"}:
        return
    with pytest.raises(PipelineError) as error:
        cache = pipeline.open_cache(store)
        cache[cache.ids[0], 0].targets
    assert str(error.value).count("\n") == 0 or "field, newline" in harm


# cache rm


@pytest.mark.parametrize("harm", LINKS)
def test_rm_refuses_a_store_that_holds_a_link(store, outside, harm):
    LINKS[harm](store, outside)
    before = snapshot(store)
    assert "nothing was removed" in refused(invoke("cache", "rm", "--yes", store)) and snapshot(store) == before


@pytest.mark.parametrize("harm", TEXTS)
def test_rm_of_a_store_that_lies_removes_it_alone_or_nothing(store, outside, harm):
    TEXTS[harm](store, outside)
    before = snapshot(store)
    result = invoke("cache", "rm", "--yes", store)
    if harm.startswith(("head", "image")):
        assert "is no whole store" in refused(result) and snapshot(store) == before
    else:
        assert result.exit_code == 0 and not store.exists() and store.parent.exists()


@pytest.mark.parametrize("slash", ["", "/"])
def test_rm_follows_no_link_to_a_store(store, tmp_path, slash):
    link = store.with_name("targets-0123456789ab")
    link.symlink_to(store)
    before = snapshot(store)
    assert "is a link" in refused(invoke("cache", "rm", "--yes", f"{link}{slash}"))
    assert link.is_symlink() and snapshot(store) == before


@pytest.mark.parametrize("beside", ["thesis.tex", "models/best.pt", "images.old/x", ".git/config"])
def test_rm_refuses_a_folder_that_holds_more_than_a_store(store, beside):
    (store / beside).parent.mkdir(exist_ok=True)
    (store / beside).write_text("mine")
    before = snapshot(store)
    assert "is no part of a store" in refused(invoke("cache", "rm", "--yes", store)) and snapshot(store) == before


def test_rm_refuses_a_folder_of_the_name_that_is_no_store(tmp_path):
    folder = tmp_path / "targets-0123456789ab"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    for text in (None, "{}", "x", '{"format": 1, "checksum": "0"}'):
        if text is not None:
            (folder / "store.json").write_text(text)
        refused(invoke("cache", "rm", "--yes", folder))
        assert (folder / "thesis.tex").read_text() == "mine"


def test_rm_refuses_a_store_of_another_kind_than_it_is_called(store):
    renamed = store.rename(store.with_name("prepared-0123456789ab"))
    assert "holds a store of targets" in refused(invoke("cache", "rm", "--yes", renamed)) and renamed.exists()


def test_rm_shows_path_files_and_bytes_before_it_asks_and_goes_on_where_it_was_broken_off(store):
    files = [path for path in store.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e3
    result = invoke("cache", "rm", store, input="n\n")
    assert f"Remove {store} ({len(files)} files, {size:.1f} kB)?" in result.stdout and store.exists()
    shutil.rmtree(store / "done")
    shutil.rmtree(store / "images")
    assert invoke("cache", "rm", store, "--yes").exit_code == 0 and not store.exists()


def test_rm_in_a_bucket_takes_the_store_alone(store, outside):
    import fsspec

    upload(store.parents[1], outside)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/bucket/roads/{store.name}/mine.txt", b"mine")
    assert "is no part of a store" in refused(invoke("cache", "rm", "--yes", f"memory://bucket/roads/{store.name}"))
    system.rm_file(f"/bucket/roads/{store.name}/mine.txt")
    system.pipe_file(f"/bucket/roads/{store.name}2/mine.txt", b"mine")
    system.pipe_file("/bucket/roads/mine.txt", b"mine")
    system.store.pop(f"/bucket/roads/{store.name}{outside}/made", None)
    system.store.pop(f"/bucket/roads/{store.name}/{outside}/made", None)
    assert invoke("cache", "rm", "--yes", f"memory://bucket/roads/{store.name}").exit_code == 0
    assert {key for key in system.store if key.startswith("/bucket")} == {
        f"/bucket/roads/{store.name}2/mine.txt",
        "/bucket/roads/mine.txt",
    }


# What no checksum vouches for


def test_verify_names_what_nothing_vouches_for(store):
    first = Store.open(store).images[0].id
    (store / "sources.tsv").write_text(f"{first}\t5:5 6:6\nnobody\t5:5\n{first}\t")
    result = invoke("verify", store)
    assert result.exit_code == 0 and f"{store}/sources.tsv: no checksum covers these 2 notes, 1 of no image here" in result.stdout
    (store / "manifest.json").unlink()
    (store / "history.jsonl").write_bytes(b"")
    said = refused(invoke("verify", store))
    assert f"{store}/manifest.json: missing or empty" in said and f"{store}/history.jsonl: missing or empty" in said
    result = invoke("verify", store, "--repair")
    assert result.exit_code == 0 and "begun again" in result.stdout and verify(Store.open(store)) == []
    assert json.loads((store / "history.jsonl").read_text().splitlines()[0])["action"] == "repair"


# Commands with a configuration, which read the same stores


@pytest.mark.parametrize("kind", ["targets", "prepared"])
@pytest.mark.parametrize("harm", ["mark", "field", "image", "link"])
@pytest.mark.parametrize(
    "command",
    [
        "train-student --student erfnet --method intra --seed 0",
        "verify",
        "verify --repair",
        "inspect --id",
        "cache-teacher",
        "prepare",
    ],
)
def test_every_command_of_a_configuration_refuses_them(experiment, outside, command, harm, kind):
    store = experiment.store(kind)
    image = Store.open(store).images[0].id
    if harm == "field":  # of all passes, as each command reads others
        for path in store.glob("passes/*.json"):
            reseal(path, lambda content: content["fields"].update({f"{outside}/made": next(iter(content["fields"].values()))}))
    else:
        {
            "mark": mark_with(["{outside}/made"]),
            "image": image_called("../../outside/mine"),
            "link": linked(f"{kind}.zarr/v000", "folder"),
        }[harm](store, outside)
    result = experiment.run(*command.split(), *[image] * command.endswith("--id"))
    fills = {"prepare": ["prepared"], "cache-teacher": ["targets"], "verify --repair": ["prepared", "targets"]}.get(command, [])
    if command == "prepare" and kind == "targets":
        assert result.exit_code == 0  # it reads none
    elif kind in fills and (harm == "mark" or harm == "field" and "repair" in command):
        assert result.exit_code == 0 and verify(Store.open(store)) == []  # what lies counts as missing, and is made anew
    else:
        assert result.exit_code == 1 and "Error: " in result.stderr and store.name in result.stderr


# Lists and ids of datasets, which files are written under

LINES = [
    "../../../x/y.jpg",
    "/../x/y.jpg",
    "driver/../../x.jpg",
    "C:/x/y.jpg",
    "a\\..\\b.jpg",
    "....jpg/../x.jpg",
    "a//b.jpg",
    ".jpg",
    "...jpg",
]


@pytest.mark.parametrize("line", LINES)
def test_a_list_of_culane_that_leads_out_is_refused_by_its_line(tmp_path, outside, line):
    root = tmp_path / "data"
    for name, text in (
        ("list/test.txt", f"/a/b.jpg\n{line}\n"),
        ("list/train_gt.txt", "/a/b.jpg /../x.png 1 1 1 1\n"),
        ("x/a/b.lines.txt", ""),
        ("x/a/b.jpg", ""),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for work in (
        lambda: culane.id_of("test.txt: line 2", line),
        lambda: culane_metric.read_list(root / "list/test.txt"),
        lambda: culane.Dataset(root=str(root)).ids("test"),
        lambda: culane.entry_of("train_gt.txt: line 1", "a.jpg ../../x.png"),
    ):
        if line == "...jpg" and work.__code__.co_names[:1] == ("culane_metric",):
            continue  # "..", so that "...lines.txt" is read: refused as well, below
        with pytest.raises(DatasetError, match="line"):
            work()
    result = invoke("score", "culane", root / "x", root / "x", "--list", root / "list/test.txt", "--workers", "1")
    assert "line 2" in refused(result)


def test_evaluate_reads_and_writes_nothing_outside_its_root(experiment, outside):
    root = experiment.folder / "data/toy"
    listed = (root / "list/test.txt").read_text()
    shutil.copytree(root / listed.split()[0].lstrip("/").rpartition("/")[0], experiment.folder / "x")
    name = Path(listed.split()[0]).stem
    raw = yaml.safe_load(experiment.config.read_text())
    experiment.config.write_text(yaml.safe_dump({**raw, "dataset": {"name": "culane", "root": "data/toy"}}))
    for path in (root / "list").glob("test*.txt"):
        path.write_text(listed + f"../../x/{name}.jpg\n")
    before = {str(path.relative_to(experiment.folder)) for path in experiment.folder.rglob("*")}
    for command in (("evaluate", "--teacher"), ("doctor",), ("export", "--teacher", "--out", "x.onnx")):
        result = experiment.run(*command)
        assert result.exit_code == 1 and "has the part '..'" in result.stderr, result.output
    assert {str(path.relative_to(experiment.folder)) for path in experiment.folder.rglob("*")} == before


@pytest.mark.parametrize(
    "line",
    [
        "test/../x.png testannot/x.png",
        "test/.. testannot/x.png",
        "test/x.png /x.png",
        "test/x.png ../x.png",
        "test/x.png testannot/..",
        "test/a\\..\\x.png testannot/x.png",
        "test/x.png a/../../x.png/..",
    ],
)
def test_a_list_of_camvid_that_leads_out_is_refused_by_its_line(tmp_path, outside, line):
    (tmp_path / "test.txt").write_text(f"{line}\n")
    with pytest.raises(DatasetError, match="line 1"):
        camvid.Dataset(root=str(tmp_path)).ids("test")


@pytest.mark.parametrize(
    "line",
    [
        "ColorImage_road02/ColorImage/../Camera 5/x.jpg",
        "ColorImage_road02/ColorImage/Record001/Camera 5/...jpg",
        "ColorImage_road02/ColorImage/a\\..\\b/Camera 5/x.jpg",
        "ColorImage_road05/...jpg",
    ],
)
def test_a_list_of_apolloscape_that_leads_out_is_refused_by_its_line(tmp_path, outside, line):
    (tmp_path / "val.txt").write_text(f"{line}\n")
    with pytest.raises(DatasetError, match="line 1"):
        apolloscape.Dataset(root=str(tmp_path), lists={"val": "val.txt"}).ids("val")


@pytest.mark.parametrize("image_id", ["../x", "/x", "a/../../x", "..", "a\\..\\x", "C:/x", "a\0b", "", "a\nb", "road/../x"])
@pytest.mark.parametrize("metric", ["culane", "llamas", "apolloscape", "cityscapes", "miou"])
def test_no_writer_of_submissions_takes_an_id_that_leads_out(tmp_path, metric, image_id):
    dataset = SimpleNamespace(
        metric=metric, prediction_path=lambda name: Path(f"{name}.png"), prediction_ids=lambda classes: classes
    )
    with pytest.raises(DatasetError):
        metrics.of(dataset).write(tmp_path / "predictions", image_id, Answer(np.zeros((2, 2), np.uint8), None, None))
    with pytest.raises(DatasetError):
        save(
            tmp_path / "predictions",
            image_id and f"{image_id}/.." if ".." not in image_id else image_id,
            np.zeros((2, 2), np.uint8),
        )
    assert not [*tmp_path.rglob("*")]


@pytest.mark.parametrize("metric", ["culane", "llamas", "cityscapes"])
def test_submissions_go_through_no_link_out_of_their_folder(tmp_path, outside, metric):
    folder = tmp_path / "predictions"
    folder.mkdir()
    (folder / "a").symlink_to(outside)
    dataset = SimpleNamespace(
        rows_cut=lambda rows: 0,
        metric=metric,
        lanes=0,
        crop_top=0,
        background=0,
        prediction_ids=lambda classes: classes,
        prediction_path=lambda name: Path(f"{name}.png"),
    )
    answer = Answer(np.zeros((2, 2), np.uint8), np.zeros((5, 300, 1000), np.float32), np.zeros(0))
    with pytest.raises(DatasetError, match="leads out"):
        metrics.of(dataset).write(folder, "a/b", answer)


def test_score_reads_no_prediction_through_a_link_out(tmp_path, outside):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for root in (truth, predictions):
        (root / "a").mkdir(parents=True)
        (root / "a/b.lines.txt").write_text("")
    (tmp_path / "list.txt").write_text("/a/b.jpg\n")
    assert invoke("score", "culane", predictions, truth, "--list", tmp_path / "list.txt", "--workers", "1").exit_code == 0
    (predictions / "a/b.lines.txt").unlink()
    (predictions / "a/b.lines.txt").symlink_to(outside / "mine.txt")
    assert "leads out" in refused(invoke("score", "culane", predictions, truth, "--list", tmp_path / "list.txt", "--workers", "1"))
    (tmp_path / "labels/rec").mkdir(parents=True)
    (tmp_path / "labels/rec/1.json").write_text("{}")
    (predictions / "rec").symlink_to(outside)
    assert "leads out" in refused(invoke("score", "llamas", predictions, tmp_path / "labels"))


def test_predict_leaves_out_a_picture_whose_name_leads_out(cached_experiment, tmp_path):
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("Camera 5 ü.png", "a\\..\\b.png", "line\nbreak.png"):
        Image.new("RGB", (410, 148)).save(pictures / name)
    out = tmp_path / "out"
    result = cached_experiment.run("predict", str(pictures), "--teacher", "--out", str(out), "--as", "ids")
    assert (
        result.exit_code == 1
        and "has the part '..', which no path below a folder has; rename it" in result.stderr
        and "has a control character" in result.stderr
    )
    assert [path.name for path in (out / "ids").iterdir()] == ["Camera 5 ü.png"]
    lone = tmp_path / "...png"
    Image.new("RGB", (410, 148)).save(lone, "PNG")
    result = cached_experiment.run("predict", str(lone), "--teacher", "--out", str(tmp_path / "other"))
    assert result.exit_code == 1 and [path.name for path in (tmp_path / "other").iterdir()] == ["predict.json"]
    shutil.copy(lone, tmp_path / "...mp4")
    assert cached_experiment.run("predict", str(tmp_path / "...mp4"), "--teacher", "--out", str(tmp_path / "third")).exit_code == 1
    assert not (tmp_path / "third").exists()


# Names in configurations

NO_NAMES = ["../../x", "a/b", "/x", "..", ".", "a\\b", "C:x", "a\nb", "x" * 300, "*", ""]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("section", ["methods", "students", "targets"])
def test_a_name_that_leads_out_is_refused_in_a_configuration(tmp_path, section, name):
    raw = yaml.safe_load((Path(__file__).parents[2] / "configs/demo.yaml").read_text())
    raw[section][name] = next(iter(raw[section].values()))
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=rf"{section}: .* is "):
        load(tmp_path / "demo.yaml")
    refused(invoke("evaluate", tmp_path / "demo.yaml", "--teacher"))


@pytest.mark.parametrize("split", ["../../x", "/x", "a\\b", ""])
def test_a_split_that_leads_out_is_refused(tmp_path, split):
    with pytest.raises(ConfigError, match="evaluate.split"):
        load(Path(__file__).parents[2] / "configs/demo.yaml", [f"evaluate.split={json.dumps(split)}"])


@pytest.mark.parametrize("file", ["...yaml", ".yaml", "a*.yaml", "a\nb.yaml"])
def test_a_file_whose_name_would_lead_out_is_refused(tmp_path, file):
    shutil.copy(Path(__file__).parents[2] / "configs/demo.yaml", tmp_path / file)
    for read in (load, study.read):
        with pytest.raises(ConfigError):
            read(tmp_path / file)


@pytest.mark.parametrize("name", NO_NAMES)
def test_arms_studies_and_splits_that_lead_out_are_refused(tmp_path, name, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    raw = yaml.safe_load((root / "configs/studies/roads.yaml").read_text())
    arm = next(iter(raw["arms"].values()))
    for change in ({"arms": {**raw["arms"], name: arm}}, {"arms": {"a": {**arm, "study": name}}, "primary": None}):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump({**raw, **change}))
        with pytest.raises(ConfigError, match="arms"):
            study.read(tmp_path / "x.yaml")
    if name not in ("a/b", "*", "C:x", "x" * 300):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump({**raw, "splits": [name]}))
        with pytest.raises(ConfigError, match="splits"):
            study.read(tmp_path / "x.yaml")


@pytest.mark.parametrize("option", ["--method", "--student"])
@pytest.mark.parametrize("command", ["evaluate", "train-student", "predict"])
def test_names_on_the_command_line_lead_nowhere(cached_experiment, tmp_path, option, command):
    named = {"--student": "erfnet", "--method": "intra", option: "../../../x"}
    more = [str(tmp_path), "--out", str(tmp_path / "out")] if command == "predict" else []
    result = cached_experiment.run(command, *more, "--seed", "0", *(word for pair in named.items() for word in pair))
    assert result.exit_code == 1 and "x'" in result.stderr and not (tmp_path / "out").exists()


# The report

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg><script>alert(2)</script>",
    "{{ 7 * 7 }}",
    "$\\frac{1}$ $",
    "&lt;b&gt;",
    "]]><b>",
    "javascript:alert(1)",
]


def test_class_names_ids_and_terms_stay_text_in_the_report():
    from datetime import date

    from pipeline.config import Plugin, Teacher
    from pipeline.reporting import feature_pictures, page, results, table
    from pipeline.reporting import record_pictures as pictures
    from pipeline.reporting.charts import new_figure, svg

    figure, axes = new_figure(3, 3)
    count = len(HOSTILE)
    pictures.draw_graph(axes, np.eye(count), HOSTILE, [(0, 0, 0)] * count)
    drawing = svg(figure)
    texts = {element.text for element in ET.fromstring(drawing).iter() if element.tag.endswith("text")}
    assert set(HOSTILE) <= texts

    score = {"metric": "mean_iou", "mean_iou": 0.5, "images": 3, "iou": {name: 0.5 for name in HOSTILE}}
    curves = [{"step": step, **{name: 1.0 for name in HOSTILE}} for step in (1, 2, 3)]
    run = results.Run(
        student=HOSTILE[0],
        method=HOSTILE[1],
        seed=0,
        score=score,
        recipe=None,
        curves=curves,
        time=results.Time(steps=3, seconds=1.0, machine=HOSTILE[2]),
    )
    found = results.Results(
        runs=[run], teacher=score, teachers={"teacher": score}, teacher_time=None, strays=HOSTILE, stale=HOSTILE
    )
    methods = {HOSTILE[1]: ()}
    lines, notes = table.lines(found, found.metric, methods)
    picture = feature_pictures.Picture(HOSTILE[1], "data:image/jpeg;base64,", 0.5)
    seen = feature_pictures.NetworkPictures(
        classes=[(name, "rgb(0, 0, 0)") for name in HOSTILE],
        frames=[feature_pictures.Frame(name, [picture]) for name in HOSTILE],
        graph_image=HOSTILE[0],
        num_graphs=1,
        graphs={HOSTILE[0]: [feature_pictures.Graph(HOSTILE[1], feature_pictures._markup(drawing), 0.1, 0.1)]},
        edges={HOSTILE[0]: (0.1, 0.9)},
        feature_layer=HOSTILE[0],
        num_features=1,
        features=[feature_pictures.Features(HOSTILE[1], feature_pictures._markup(drawing), 0.5)],
    )
    html = page.render(
        name=HOSTILE[0],
        dataset=HOSTILE[1],
        split=HOSTILE[2],
        results=found,
        lines=lines,
        notes=notes,
        methods=methods,
        cached=None,
        latencies={},
        teachers={
            "teacher": Teacher(
                model=Plugin(kind="models", name="erfnet", args={"width": HOSTILE[0]}),
                checkpoint=None,
                backbone=None,
                precision="fp32",
            )
        },
        written=date(2026, 1, 1),
        settings="\n".join(HOSTILE),
        pictures=seen,
    )
    for tag in ("<script", "<img src=x", "onerror=alert(1)>", "]]><b>"):
        assert tag not in html, tag
    assert html.count("<img") == len(HOSTILE) and html.count("</svg>") == html.count("<svg")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "{{ 7 * 7 }}" in html


def test_a_record_is_drawn_with_whatever_names(tmp_path):
    from pipeline.reporting import record_pictures as pictures

    dataset = SimpleNamespace(classes=HOSTILE, colours=[(0, 0, 0)] * len(HOSTILE), background=0)
    count = len(HOSTILE)
    figure = pictures.record_figure(
        "$\\frac{1}$ <id>",
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
        None,
        {},
        {"$x^": (np.stack([np.eye(count)] * 3), np.ones(count))},
        dataset,
        range(count),
    )
    figure.savefig(tmp_path / "record.png")


def test_a_report_of_the_cache_names_no_folder_outside(tmp_path, outside):
    from pipeline.reporting.results import cached

    (tmp_path / "cache/roads/targets-0123456789ab").mkdir(parents=True)
    said = {"identity": {"digest": "0123456789ab"}, "images": 1, "views": 1, "targets": {"t": {"pass": "../../../../outside"}}}
    for change in ({}, {"identity": {"digest": "/../../../.."}}):
        (tmp_path / "report.json").write_text(json.dumps(said | change))
        with pytest.raises(PipelineError):
            cached(tmp_path / "report.json", tmp_path / "cache", "roads")


def test_a_target_of_a_store_makes_no_object_but_one_of_the_targets(store, outside):
    """What a foreign store's records can name: a target's type, and plain values for it."""
    path = next(store.glob("passes/affinity-*.json"))
    content = check_and_parse(path.read_bytes(), path)
    for kind in ("os", "../models/adapter", "_grid", "base", "adapter"):
        record = {**content["record"], "type": kind}
        digest = identity_digest({"name": "affinity", "record": record})[:8]
        (store / f"passes/affinity-{digest}.json").write_bytes(with_checksum({**content, "record": record}))
        with pytest.raises((ConfigError, StoreError)):
            pipeline.open_cache(store)
        (store / f"passes/affinity-{digest}.json").unlink()
    assert (
        config.plugin("targets", content["record"]["type"], {"layer": "high"}) if content["record"]["type"] == "affinity" else True
    )
