"""Blocks of one store become another's, by adoption or by merging; a kill at any step leaves stores that are valid."""

import dataclasses
import functools
import http.server
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import pytest
from killing import die_at, ended, forked
from toy_store import GRAPH, PASSES, RECORD, VIEWS, create, fill, images, tree, values

from pipeline.errors import StoreError
from pipeline.store import Store
from pipeline.store.files import as_path
from pipeline.store.verification import verify
from stages import cache

CALLS = "replace", "link", "fsync"  # after which a store on disk differs
NEW = RECORD | {"teacher": RECORD["teacher"] | {"version": 2}}


def take_over(old, root):
    new = create(root, NEW)
    groups = old.stored_groups()
    new.take_extent(old, groups)
    for view, folder in groups:
        for block in range(old.num_blocks):
            new.take_over_block(old, view, folder, block)
    new.finalise()
    return new


def test_a_kill_at_every_step_of_an_adoption_leaves_the_old_store_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    old = create(tmp_path / "old")
    for count in (3, 6):  # a block that is not full
        old.grow(images(count))
    fill(old, PASSES, VIEWS[:1])
    old.finalise()
    before, meant = tree(old.folder), tree(take_over(old, tmp_path / "unbroken").folder)
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        root = tmp_path / str(step)
        code = ended(forked(lambda: (die_at(step, *CALLS), take_over(old, root))))
        for path in root.glob("roads/*/store.json"):
            assert not [fault for fault in verify(Store.open(path.parent)) if "missing, or not what" not in fault], step
        new = take_over(old, root)
        assert tree(new.folder) == meant and tree(old.folder) == before and verify(new) == [], step
        shutil.rmtree(root)
        step += 7
    assert code == 0 and step > 60


def test_without_hard_links_the_blocks_are_copied(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    old = create(tmp_path / "old")
    old.grow(images(6))
    fill(old, PASSES, VIEWS[:1])
    new = take_over(old, tmp_path / "new")
    assert verify(new) == [] and chunks(new) == chunks(old)


def test_a_damaged_block_is_not_taken_over(tmp_path):
    old = create(tmp_path / "old")
    old.grow(images(6))
    fill(old, PASSES, VIEWS[:1])
    chunk = next(path for path in sorted(old.folder.rglob("c.*")))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="damaged"):
        take_over(old, tmp_path / "new")
    assert verify(Store.open(create(tmp_path / "new", NEW).folder)) == []


def chunks(store):
    return {name: data for name, data in tree(store.folder).items() if name.startswith("targets.zarr")}


# Merging stores of one identity


def share(root, remainder):
    """The store as one of two hosts fills it: every second block."""
    store = create(root)
    store.grow(images(14))
    for pass_ in PASSES:
        store.add_pass(pass_, VIEWS[:1])
        for block in range(store.num_blocks):
            if block % 2 == remainder:
                store.write_block(pass_, 0, block, values(pass_, 0, store.block_images(block)))
    return store


def whole(root):
    store = create(root)
    store.grow(images(14))
    fill(store, PASSES, VIEWS[:1])
    store.finalise()
    return store


def test_two_shares_are_merged_into_the_bytes_of_one_fill(tmp_path):
    one, other = share(tmp_path / "one", 0), share(tmp_path / "other", 1)
    meant, before = tree(whole(tmp_path / "whole").folder), tree(other.folder)
    said = cache.merge(into=one.folder, source=other.folder)
    assert (
        "4 of 8 blocks" in said
        and "8 of 8 blocks are filled now" in said
        and tree(one.folder) == meant
        and tree(other.folder) == before
    )
    assert verify(Store.open(one.folder)) == []
    assert cache.merge(into=tmp_path / "one", source=tmp_path / "whole") and tree(one.folder) == meant


def test_a_folder_where_no_run_would_look_is_refused_and_nothing_is_copied(tmp_path):
    one, other = whole(tmp_path / "one"), share(tmp_path / "other", 1)
    before = tree(tmp_path)
    misspelt = one.folder.with_name(f"{one.folder.name[:-1]}g")
    for call in (
        lambda: cache.merge(into=misspelt.with_name("targets-000000000000"), source=other.folder),
        lambda: cache.pull(source=other.folder, root=one.folder, num_views=None),  # a store, and the folder of a dataset
        lambda: cache.pull(source=other.folder, root=tmp_path / "targets-000000000000", num_views=None),
        lambda: cache.pull(source=other.folder, root=one.folder.parent, num_views=None),
        lambda: cache.card(folder=misspelt, changes={}),
    ):
        with pytest.raises(StoreError, match="is no store|, and no root") as raised:
            call()
        assert len(str(raised.value).splitlines()) == 1 and tree(tmp_path) == before


def test_conflicts_are_named_and_nothing_is_merged(tmp_path):
    one, other = share(tmp_path / "one", 0), share(tmp_path / "other", 1)
    rows = values(GRAPH, 0, one.block_images(0))
    other.write_block(GRAPH, 0, 0, rows | {"cells": rows["cells"] + np.uint8(1)})  # as another device would
    before = tree(one.folder)
    with pytest.raises(StoreError) as raised:
        cache.merge(into=one.folder, source=other.folder)
    first, *_, last = str(raised.value).splitlines()
    assert f"block 0 of {GRAPH.folder}, v000: other bytes" in first and "crc " in first and "1 conflict," in last
    assert tree(one.folder) == before


@pytest.mark.parametrize("what", ["identity", "images", "code"])
def test_stores_that_are_of_something_else_are_not_merged(tmp_path, what):
    one = share(tmp_path / "one", 0)
    other = create(tmp_path / "other", NEW if what == "identity" else RECORD)
    other.grow(images(14, start=1) if what == "images" else images(14))
    pass_ = dataclasses.replace(GRAPH, code="0123456789abcdef")
    other.add_pass(pass_, VIEWS[:1])
    if what == "code":
        one.vouch_for_code([dataclasses.replace(GRAPH, code="fedcba9876543210")])
    before = tree(one.folder)
    said = {"identity": "teacher.version: nothing here, 2 asked for", "images": "lists other images", "code": "by other code"}[what]
    with pytest.raises(StoreError, match=said):
        cache.merge(into=one.folder, source=other.folder)
    assert tree(one.folder) == before


def test_a_kill_at_any_step_of_a_merge_leaves_a_valid_store_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    other, meant = share(tmp_path / "other", 1), tree(whole(tmp_path / "whole").folder)
    step, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        one = share(tmp_path / str(step), 0)
        code = ended(forked(lambda: (die_at(step, *CALLS), cache.merge(into=one.folder, source=other.folder))))
        assert not [fault for fault in verify(Store.open(one.folder)) if "history" not in fault], step
        cache.merge(into=one.folder, source=other.folder)
        assert tree(one.folder) == meant, step
        shutil.rmtree(tmp_path / str(step))
        step += 11
    assert code == 0 and step > 20


# The card, and publishing


TERMS = {"licence": "CC-BY-4.0", "citation": "A. Author,\n  2026", "terms": "research only"}


def test_a_card_is_kept_beside_the_store_and_travels_with_it(tmp_path):
    store = whole(tmp_path / "here")
    before = tree(store.folder)
    assert "not noted: data.licence" in cache.card(folder=store.folder, changes={})
    said = cache.card(folder=store.folder, changes={"data": TERMS, "teacher": {"licence": "MIT\x1b[2J"}})
    assert "data citation: A. Author, 2026" in said and "teacher licence: MIT[2J" in said and "not noted: teacher.citation" in said
    assert {name: data for name, data in tree(store.folder).items() if name != "card.json"} == before
    assert verify(Store.open(store.folder)) == []
    cache.pull(source=tmp_path / "here", root=tmp_path / "there", num_views=None)
    assert (tmp_path / "there/roads" / store.folder.name / "card.json").read_bytes() == (store.folder / "card.json").read_bytes()
    path = store.folder / "card.json"
    path.write_bytes(path.read_bytes().replace(b"CC-BY", b"CC-NC"))
    assert any("card.json: damaged" in fault for fault in verify(Store.open(store.folder)))


def test_publishing_demands_the_terms_and_writes_card_and_sums(tmp_path):
    store, out = whole(tmp_path / "here"), tmp_path / "published"
    cache.card(folder=store.folder, changes={"data": TERMS})
    with pytest.raises(StoreError, match="its card lacks teacher.licence, teacher.citation, teacher.terms"):
        cache.publish(folders=[store.folder], out=out)
    assert not out.exists()
    cache.card(folder=store.folder, changes={"teacher": TERMS})
    for _ in range(2):
        assert "SHA256SUMS" in cache.publish(folders=[store.folder], out=out)
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlicense: other\n") and "- teacher terms: research only" in text and store.folder.name in text
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    listed = {line.split("  ", 1)[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files - listed == {"SHA256SUMS"} | {name for name in files if name.endswith((".lock", ".in-use"))}
    cache.pull(source=out, root=tmp_path / "there", num_views=None)
    assert verify(Store.open(tmp_path / "there/roads" / store.folder.name)) == []


def test_a_second_store_is_published_beside_the_first_and_both_have_their_terms(tmp_path):
    stores, out = [whole(tmp_path / "here"), create(tmp_path / "there", NEW)], tmp_path / "published"
    stores[1].grow(images(6))
    fill(stores[1], PASSES, VIEWS[:1])
    stores[1].finalise()
    for store in stores:
        cache.card(folder=store.folder, changes={"data": TERMS, "teacher": TERMS})
    cache.publish(folders=[stores[0].folder], out=out)
    cache.publish(folders=[tmp_path / "there"], out=out)  # a root
    text, sums = (out / "README.md").read_text(), (out / "SHA256SUMS").read_text()
    assert all(f"## roads/{store.folder.name}" in text and f"{store.folder.name}/store.json" in sums for store in stores)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=True)


def test_a_readme_of_something_else_is_not_overwritten(tmp_path):
    store, out = whole(tmp_path / "here"), tmp_path / "checkout"
    cache.card(folder=store.folder, changes={"data": TERMS, "teacher": TERMS})
    out.mkdir()
    (out / "README.md").write_text("# My project\n")
    with pytest.raises(StoreError, match="README.md: would be overwritten"):
        cache.publish(folders=[store.folder], out=out)
    assert [path.name for path in out.iterdir()] == ["README.md"] and (out / "README.md").read_text() == "# My project\n"


def test_a_published_folder_is_pulled_from_a_web_server_that_lists_folders(tmp_path):
    pytest.importorskip("aiohttp", reason="reads http://")
    store, out = whole(tmp_path / "here"), tmp_path / "published"
    cache.card(folder=store.folder, changes={"data": TERMS, "teacher": TERMS})
    cache.publish(folders=[store.folder], out=out)
    handler = functools.partial(QuietHandler, directory=str(out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        cache.pull(source=as_path(url), root=tmp_path / "pulled", num_views=None)
        with pytest.raises(StoreError, match="no store, nor a root"):
            cache.pull(source=as_path(f"{url}/nothing"), root=tmp_path / "pulled", num_views=None)
        server.shutdown()
    ours = tmp_path / "pulled/roads" / store.folder.name
    assert tree(ours) == tree(store.folder) and verify(Store.open(ours)) == []


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_what_is_not_whole_is_not_published(tmp_path):
    store = share(tmp_path / "here", 0)
    cache.card(folder=store.folder, changes={"data": TERMS, "teacher": TERMS})
    with pytest.raises(StoreError, match="are not filled .*only a whole store is published"):
        cache.publish(folders=[store.folder], out=tmp_path / "published")
    assert not (tmp_path / "published").exists()
