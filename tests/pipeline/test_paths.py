"""The rule for text that becomes a path: what stays valid, what is refused, and links on disk."""

import os

import pytest

from pipeline.errors import DatasetError, StoreError
from pipeline.paths import below, default_root, id_fault, if_done_for_dvc, name_fault, path_fault
from pipeline.store.files import append, locked, write, writing
from pipeline.store.remote import RemotePath

IDS = [
    "driver_23_30frame/05151649_0422.MP4/00000",
    "Record001/Camera 5/171206_025742296_Camera_5",
    "a.b/c..d/...e",
    "seq/00 ü.png",
    "日本/写真 1",
    "a b",
    "#",
    '"',
    "C",
    "CC:/x",
    "~/x",
    "%2e%2e/x",
    "-rf",
    "name \udcff",
    "ab:c/d",
    "x/{{7*7}}",
    "<b>/&amp;",
]
UPWARD = ["..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "C:/x", "c:x", "a\0b", "", "a/..\\b"]
ODD = ["a\\b", "..\\x", "\\x", "a\nb", "a\tb", "\x1b[2J", "a\x7f", "a\u2028b", "a\x9bb", "a//b", "a/", "./a", "a/./b", "."]
NAMES = ["intra", "kd_t4", "view 2", "größe", "1.5x", "kd(T=4,w=0.1)", "a+b", "targets-0123456789ab", "x" * 100]
NO_NAMES = [
    *UPWARD,
    *ODD,
    "a/b",
    ".hidden",
    "-rf",
    " a",
    "a ",
    "a.",
    "a*",
    "a|b",
    "a:b",
    "<b>",
    "$x",
    "x" * 101,
    "é" * 51,
    None,
    5,
    ["a"],
    "name\udcff",
]


@pytest.mark.parametrize("text", IDS)
def test_ids_of_real_datasets_and_odder_ones_stay_valid(text, tmp_path):
    assert path_fault(text) is None and id_fault(text) is None and below(tmp_path, text) == tmp_path / text


@pytest.mark.parametrize("text", [*UPWARD, *ODD])
def test_what_leads_out_or_cannot_be_told_apart_is_no_path(text, tmp_path):
    for top in (tmp_path, RemotePath.of("s3://bucket/store")):
        with pytest.raises(DatasetError) as error:
            below(top, text, DatasetError)
        assert str(error.value).count("\n") == 0 and str(top) in str(error.value)


@pytest.mark.parametrize("text", UPWARD)
def test_a_store_lists_no_id_that_leads_out(text):
    assert id_fault(text)


@pytest.mark.parametrize("text", NAMES)
def test_names(text):
    assert name_fault(text) is None


@pytest.mark.parametrize("text", NO_NAMES)
def test_no_names(text):
    assert "\n" not in name_fault(text)


def test_a_link_inside_may_lead_elsewhere_inside_and_the_folder_may_be_a_link_itself(tmp_path):
    (tmp_path / "store/a").mkdir(parents=True)
    (tmp_path / "store/a/file").write_text("x")
    (tmp_path / "store/link").symlink_to("a")
    (tmp_path / "here").symlink_to("store")
    assert below(tmp_path / "here", "link/file").read_text() == "x"
    assert below(tmp_path / "here", "not/there/yet") == tmp_path / "here/not/there/yet"


@pytest.mark.parametrize("target", ["outside", "outside/new", "../outside", "/etc", "store-beside"])
@pytest.mark.parametrize("name", ["link", "link/file", "folder/link/a/b"])
def test_a_link_out_is_refused_wherever_it_stands_and_also_where_nothing_is_there(tmp_path, target, name):
    store = tmp_path / "store"
    (store / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "store-beside").mkdir()  # begins with the store's own name
    for place in (store / "link", store / "folder/link"):
        place.symlink_to(os.path.relpath(tmp_path / target[3:], place.parent) if target[0] == "." else tmp_path / target)
    with pytest.raises(StoreError, match="is a link that leads out of"):
        below(store, name)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "pipe/x"):
        with pytest.raises(StoreError, match="neither a file nor a folder"):
            below(tmp_path, name)


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("work", ["write", "append", "lock"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(tmp_path, work, kind):
    (tmp_path / "mine").write_text("mine")
    store = tmp_path / "store"
    store.mkdir()
    name = {"write": "x.tmp", "append": "x", "lock": ".lock"}[work]
    (store / name).symlink_to(tmp_path / "mine") if kind == "link" else os.mkfifo(store / name)
    with pytest.raises(StoreError, match="is a link or a pipe where a file should be"), writing(store):
        if work == "write":
            write([(store / "x", b"theirs")])
        elif work == "append":
            append(store / "x", b"theirs")
        else:
            with locked(store):
                pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "variable, here, found",
    [
        (None, "p", "cache"),
        (None, "p/.dvc/tmp/exps/tmpabc", "{tmp}/p/cache"),
        (None, "p/.dvc/tmp/exps/tmpabc/sub/roads", "{tmp}/p/sub/roads/cache"),
        ("my stores", "p/.dvc/tmp/exps/tmpabc", "{tmp}/p/my stores"),
        ("/big/cache", "p/.dvc/tmp/exps/tmpabc", "/big/cache"),
        ("s3://bucket/cache", "p/.dvc/tmp/exps/tmpabc", "s3://bucket/cache"),
        (None, ".", "cache"),
    ],
)
def test_an_experiment_in_a_checkout_of_its_own_finds_the_stores_of_the_one_it_was_started_in(
    tmp_path, monkeypatch, variable, here, found
):
    for folder in ("p/.dvc", "p/.dvc/tmp/exps/tmpabc/.dvc", here):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "linked").symlink_to("p")
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.delenv("PIPELINE_CACHE_ROOT", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    if variable:
        monkeypatch.setenv("PIPELINE_CACHE_ROOT", variable)
    assert default_root() == (variable or "cache")  # nothing that DVC runs
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "p"))
    assert default_root() == found.format(tmp=tmp_path)
    if found == "cache":
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / "linked"))
        assert default_root() == "cache"


def test_under_dvc_the_cure_also_names_the_stage_that_is_taken_for_done(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert if_done_for_dvc("prepare") == ""
    monkeypatch.setenv("DVC_STAGE", "cache-teacher@demo")
    assert "`dvc repro --force --single-item prepare@CONFIG`" in if_done_for_dvc("prepare")
