"""Stores on object storage, against a real S3 server on loopback: rows, refusals, fills that are killed, copies."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pytest
import yaml
from google_crc32c import value as crc32c
from toy_store import GRAPH, PASSES, RECORD, create, fill, images, tree, values
from toy_store import filled as filled_store

from pipeline.errors import StoreError
from pipeline.store import Reader, Store, remote
from pipeline.store.files import as_path, check_and_parse, with_checksum
from pipeline.store.remote import RemoteError, RemotePath
from pipeline.store.verification import verify
from pipeline.training.loading import block_shuffled
from stages import cache as stage

s3fs = pytest.importorskip("s3fs", reason="reads s3://; pip install '.[s3]'")
pytest.importorskip("moto.server", reason="an S3 server for tests; pip install 'moto[server]'")

COUNT, VIEWS = 6, range(2)
IDS = [row.id for row in images(COUNT)]


@pytest.fixture(scope="module")
def server():
    """An S3 server in a process of its own, and an environment that leads there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield
    process.terminate()
    process.wait()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(server, request):
    """A bucket of its own for each test."""
    name = f"bucket-{abs(hash(request.node.name)) % 10**9}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return RemotePath.of(f"s3://{name}")


def filled(root, passes=[GRAPH], **options):
    return filled_store(root, COUNT, passes, VIEWS, **options)


def remote_tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name != "history.jsonl"}


def asked(count=30):
    generator = np.random.default_rng(0)
    return generator.integers(0, len(IDS), count), generator.integers(0, len(VIEWS), count)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_fill_there_leaves_the_files_of_a_fill_here_and_reads_alike(tmp_path, bucket, codec):
    here, there = filled(tmp_path, PASSES, codec=codec), filled(bucket / "cache", PASSES, codec=codec)
    assert str(there.folder).startswith("s3://") and verify(there) == []
    assert remote_tree(there.folder) == tree(here.folder)
    positions, views = asked()
    for memory in ("disk", "ram"):
        reader = Reader(Store.find(as_path(f"{bucket}/cache"), "targets", "roads", RECORD), PASSES, IDS, len(VIEWS), memory=memory)
        assert ("from object storage" in reader.strategy) == (memory == "disk")
        for pass_ in PASSES:
            meant = Reader(here, PASSES, IDS, len(VIEWS)).read(pass_, positions, views)
            assert all(np.array_equal(rows, meant[name]) for name, rows in reader.read(pass_, positions, views).items())


def test_a_store_there_grows_and_is_not_written_twice(bucket):
    store = filled(bucket)
    before = remote_tree(store.folder)
    store.grow(images(9))
    assert fill(store, [GRAPH], range(3)) == len(VIEWS) + store.num_blocks
    assert fill(store, [GRAPH], range(3)) == 0
    after = remote_tree(store.folder)
    assert all(after[path] == data for path, data in before.items() if "zarr.json" not in path and "manifest" not in path)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_from_there(bucket, start):
    store = filled(bucket)
    positions, views = asked()
    reader = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk")
    meant = reader.read(GRAPH, positions, views)["graph"]  # the parent has connections open
    with get_context(start).Pool(1) as pool:
        found = pool.apply_async(reader.read, (GRAPH, positions, views)).get(60)
    assert np.array_equal(found["graph"], meant)


def test_an_order_by_blocks_fetches_each_file_there_once_an_epoch(bucket, monkeypatch):
    store = filled(bucket)
    reader, order = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk"), block_shuffled(0, 0, np.arange(COUNT) // 4, 1)
    meant, requests, whole = reader.read(GRAPH, order, order % 2)["graph"], [], RemotePath.read_bytes
    monkeypatch.setattr(RemotePath, "read_bytes", lambda path: requests.append(path.key) or whole(path))
    monkeypatch.setattr(RemotePath, "read_ranges", None)  # no row is asked for by itself
    reader.keep_chunks(4)
    found = [reader.read(GRAPH, order[start : start + 2], order[start : start + 2] % 2)["graph"] for start in range(0, COUNT, 2)]
    assert np.array_equal(np.concatenate(found), meant)
    assert len(requests) == len(set(requests)) == store.num_blocks * len(GRAPH.fields) * len(VIEWS)


def test_obstore_and_fsspec_read_the_same_and_fsspec_tells_what_is_wrong(bucket, monkeypatch):
    pytest.importorskip("obstore", reason="reads s3:// faster; pip install '.[s3]'")
    (bucket / "a").write_bytes(b"0123456789")
    client = remote.fast_client("s3", bucket.key, os.getpid())
    assert client is not None and remote.fast_client("gs", bucket.key, os.getpid()) is None
    for fast in (client, None):
        monkeypatch.setattr(remote, "fast_client", lambda *_, fast=fast: fast)
        assert (bucket / "a").read_bytes() == b"0123456789"
        assert bucket.read_ranges(["a", "a", "a"], [0, 3, 8], [2, 7, 12]) == [b"01", b"3456", b"89"]
        with pytest.raises(FileNotFoundError, match="b"):
            (bucket / "b").read_bytes()
        with pytest.raises(FileNotFoundError):
            bucket.read_ranges(["a", "b"], [0, 0], [2, 2])


def test_other_settings_than_the_environment_s_are_left_to_fsspec(server, monkeypatch):
    pytest.importorskip("obstore", reason="reads s3:// faster; pip install '.[s3]'")
    with monkeypatch.context() as patched:
        patched.setenv("AWS_PROFILE", "other")
        assert remote.fast_client("s3", "profile", os.getpid()) is None
    with monkeypatch.context() as patched:
        patched.delenv("AWS_SECRET_ACCESS_KEY")
        assert remote.fast_client("s3", "nobody", os.getpid()) is None
    assert remote.fast_client("s3", "forked", os.getpid()) is not None
    assert remote.fast_client("s3", "forked", os.getpid() + 1) is None


def test_blocks_fetched_ahead_are_those_of_the_batches_and_each_is_fetched_once(bucket, monkeypatch):
    store = filled(bucket)
    reader, order = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk"), block_shuffled(0, 0, np.arange(COUNT) // 4, 1)
    meant, requests, whole = reader.read(GRAPH, order, order % 2)["graph"], [], RemotePath.read_bytes
    monkeypatch.setattr(RemotePath, "read_bytes", lambda path: requests.append(path.key) or whole(path))
    reader.keep_chunks(8)
    for start in range(0, COUNT, 2):
        reader.fetch(order[start : start + 2], order[start : start + 2] % 2)
    fetched = list(requests)
    assert len(fetched) == len(set(fetched)) == store.num_blocks * len(GRAPH.fields) * len(VIEWS)
    assert np.array_equal(reader.read(GRAPH, order, order % 2)["graph"], meant) and requests == fetched


def test_damage_there_is_refused_and_named(bucket):
    store = filled(bucket)
    chunk = store.folder / store.arrays("v001", GRAPH.folder)["graph"].chunk_path(1)
    reader = Reader(store, [GRAPH], IDS, len(VIEWS), memory="disk")
    data = chunk.read_bytes()
    for harmed in (data[:40] + b"?" + data[41:], data[:50], None):
        chunk.unlink() if harmed is None else chunk.write_bytes(harmed)
        with pytest.raises(StoreError):
            reader.read(GRAPH, np.array([4, 5, 3]), np.array([1, 1, 1]))
        assert str(chunk) in store.fault("v001", GRAPH.folder, 1, deep=True)
    assert any(str(chunk) in fault for fault in verify(store))
    assert store.missing(GRAPH, 1) == [1] and fill(store, [GRAPH], VIEWS) == 1 and verify(store) == []


def fill_until_killed(root, puts):
    """Fills, and dies at the puts-th PUT of a block's file or mark, when those before it are acknowledged."""
    left, put = [puts], RemotePath.write_bytes

    def watched(path, data):
        if "/c." in path.key or "/done/" in path.key:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        put(path, data)

    RemotePath.write_bytes = watched
    store = create(root)
    store.grow(images(COUNT))
    fill(store, [GRAPH], range(1))


def test_a_fill_killed_between_data_and_mark_goes_on_and_ends_in_the_same_bytes(tmp_path, bucket):
    meant = tree(filled_store(tmp_path, COUNT, [GRAPH], range(1)).folder)
    codes = []
    for puts in (1, 4, 9):  # a block has four files and a mark, and there are two blocks
        root = bucket / f"killed-{puts}"
        process = get_context("fork").Process(target=fill_until_killed, args=(root, puts))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        store = create(root)
        missing = store.missing(GRAPH, 0)
        assert missing == [block for block in range(2) if puts < 5 * (block + 1)]
        whole = [row for block in range(2) if block not in missing for row in store.block_images(block)]
        found = Reader(store, [GRAPH], [row.id for row in whole], 1).read(GRAPH, np.arange(len(whole)), np.zeros(len(whole), int))
        assert all(np.array_equal(found[name], rows) for name, rows in values(GRAPH, 0, whole).items())
        fill(store, [GRAPH], range(1))
        store.finalise()
        assert remote_tree(store.folder) == meant, puts
    assert codes == [-signal.SIGKILL] * 3


def test_a_store_is_pulled_to_disk_pushed_back_and_pulled_again_after_growth(tmp_path, bucket):
    store = filled(bucket / "cache")
    said = stage.pull(source=as_path(str(store.folder)), root=tmp_path / "here", num_views=None)
    folder = tmp_path / "here" / "roads" / store.folder.name
    assert str(folder) in said and tree(folder) == remote_tree(store.folder) and verify(Store.open(folder)) == []

    stage.pull(source=tmp_path / "here", root=bucket / "copy", num_views=None)
    copy = Store.open(bucket / "copy" / "roads" / store.folder.name)
    assert remote_tree(copy.folder) == tree(folder) and verify(copy) == []

    store.grow(images(9))
    fill(store, [GRAPH], VIEWS)
    store.finalise()
    inodes = {path: path.stat().st_ino for path in folder.rglob("c.*")}
    stage.pull(source=store.folder, root=tmp_path / "here", num_views=None)
    assert tree(folder) == remote_tree(store.folder)
    assert all(path.stat().st_ino == inode for path, inode in inodes.items())  # only what it lacked


def test_a_pull_takes_no_damaged_block(tmp_path, bucket):
    store = filled(bucket)
    chunk = store.folder / store.arrays("v000", GRAPH.folder)["graph"].chunk_path(1)
    data = chunk.read_bytes()
    chunk.write_bytes(data[:9] + b"??" + data[11:])
    with pytest.raises(StoreError, match="crc32c"):
        stage.pull(source=store.folder, root=tmp_path, num_views=None)
    ours = Store.open(tmp_path / str(store.folder.parent.name) / store.folder.name)
    assert 1 in ours.missing(GRAPH, 0)
    chunk.write_bytes(data)
    stage.pull(source=store.folder, root=tmp_path, num_views=None)
    assert tree(ours.folder) == remote_tree(store.folder)


@pytest.mark.parametrize("named", ["{outside}/made", "../../../outside/made", "targets.zarr/v000/../../../../../outside/made"])
def test_a_pull_of_a_bucket_writes_what_a_mark_names_nowhere_but_in_its_block(tmp_path, bucket, named):
    theirs = filled(bucket / "cache").folder
    outside = tmp_path / "outside"
    outside.mkdir()
    name, data = named.format(outside=outside), b"theirs" + crc32c(b"theirs").to_bytes(4, "little")
    for key in (f"{theirs.key}/{name}", f"{theirs.key}{name}"):
        RemotePath(theirs.protocol, key).write_bytes(data)
    mark = sorted(theirs.glob("done/v000/*.json"))[0]
    content = check_and_parse(mark.read_bytes(), mark)
    content["files"][name] = [len(data), f"{crc32c(b'theirs'):08x}"]
    mark.write_bytes(with_checksum(content, indent=None))
    with pytest.raises(StoreError, match="names other files than those of its block"):
        stage.pull(source=bucket / "cache", root=tmp_path / "here", num_views=None)
    assert not [*outside.iterdir()] and {path.name for path in tmp_path.iterdir()} == {"here", "outside"}


def test_list_and_rm_work_there(tmp_path, bucket):
    store = filled(bucket / "cache")
    nobody = {"configs": tmp_path / "configs", "runs": tmp_path / "runs"}
    assert "| roads | targets |" in stage.run(root=bucket / "cache", **nobody)
    with pytest.raises(StoreError, match="no store"):
        stage.check_is_store(bucket / "cache")
    stage.remove(folder=store.folder)
    assert stage.run(root=bucket / "cache", **nobody).endswith("no stores")


def test_what_cannot_be_reached_is_one_line(server, monkeypatch):
    with pytest.raises(StoreError, match="store.json: is not there, so this is no store"):
        Store.open("s3://no-such-bucket/roads/targets-000000000000")
    with pytest.raises(RemoteError, match="no such bucket; create it"):
        create(as_path("s3://no-such-bucket/cache"))
    with pytest.raises(StoreError, match="there is no targets store"):
        Store.find(as_path("s3://no-such-bucket/cache"), "targets", "roads", RECORD)
    with pytest.raises(RemoteError, match="install"):
        Store.open("nowhere://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match="check address") as error:
        Store.open("s3://bucket/roads/targets-000000000000")
    assert "\n" not in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()


def test_both_stages_run_with_their_root_there(experiment, bucket):
    raw = yaml.safe_load(experiment.config.read_text())
    raw["targets"] = {"attention_high": raw["targets"]["attention_high"]}
    raw["methods"] = {"intra": raw["methods"]["intra"][1:]}
    raw["views"]["count"] = 2
    experiment.config.write_text(yaml.safe_dump(raw))
    shutil.rmtree(experiment.store("targets"))
    experiment.do("cache-teacher")
    report = (experiment.folder / "reports/cache/toy.json").read_bytes()
    assert experiment.train().exit_code == 0
    weights = next((experiment.folder / "runs/toy/erfnet-intra-0").glob("weights.safetensors"))
    here, meant = experiment.store("targets"), weights.read_bytes()
    stage.pull(source=experiment.store("prepared"), root=bucket / "cache", num_views=None)
    (experiment.folder / "reports/cache/toy.json").unlink()
    experiment.do("cache-teacher", "--root", f"{bucket}/cache")
    there = bucket / "cache" / "roads" / here.name
    assert remote_tree(there) == tree(here) and (experiment.folder / "reports/cache/toy.json").read_bytes() == report
    weights.parent.rename(experiment.folder / "first")
    assert experiment.train("intra", "--root", f"{bucket}/cache").exit_code == 0
    assert weights.read_bytes() == meant
    result = experiment.run("verify", "--root", f"{bucket}/cache")
    assert result.exit_code == 0 and "whole and undamaged" in result.stdout


def test_plan_and_prepare_work_with_their_root_there(experiment, bucket, monkeypatch):
    from stages import plan as stage

    monkeypatch.setattr(stage, "MEASURE_S", 0.0)
    monkeypatch.setattr(stage, "WRITTEN_VIEWS", 2)
    root = f"{bucket}/cache"
    out = experiment.do("plan", "--measure", "--root", root)
    assert "time to fill" in out and f"free at {root}: object storage doesn't say" in out
    assert not list((bucket / "cache").rglob("*"))
    refused = experiment.run("plan", "--measure", "--root", "s3://no-such-bucket/cache")
    assert refused.exit_code == 1 and "no such bucket" in refused.stderr.splitlines()[-1]  # after what was measured

    image = (experiment.folder / "data/toy/list/train_gt.txt").read_text().split()[0]
    frame = experiment.folder / "data/toy" / image.lstrip("/")
    whole = frame.read_bytes()
    frame.write_bytes(whole[:500])
    assert "12 images (1 left out: skipped.tsv)" in experiment.do("prepare", "--skip-bad", "--root", root)
    frame.write_bytes(whole)
    assert "13 images," in experiment.do("prepare", "--root", root)
    assert not list((bucket / "cache").glob("roads/*/skipped.tsv"))
    result = experiment.run("cache-teacher", "--root", "s3://no-such-bucket/cache")
    assert result.exit_code == 1 and "make it with `pipeline prepare`" in result.stderr
