"""A plan is arithmetic: as small and as quick for a hundred million images as for a thousand."""

import tracemalloc
from types import SimpleNamespace

import pytest
from toy_store import GRAPH, MATRIX, filled

from pipeline.store import plan

CONTEXT = SimpleNamespace(size=(16, 24), num_classes=3, channels={"mid": 4, "high": 8}, grids={"mid": (4, 6), "high": (2, 3)})


def test_a_hundred_million_images_are_planned_without_a_list_of_them():
    tracemalloc.start()
    huge = plan.sizes(10**8, 8, {"graph": GRAPH}, MATRIX, CONTEXT)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert huge.rows_of_block == 1024 and huge.num_blocks == 97657 and huge.row_bytes == 36 + 3 + 8 + 48 + 4
    assert huge.total_bytes == 97657 * 1024 * 8 * huge.row_bytes
    assert huge.num_files == 97657 * (8 * (3 * 2 + 2) + 1)  # a chunk and its crcs a field, two marks; a list of images


def test_a_task_holds_all_that_is_missing_of_a_block_in_one_view():
    missing = {(1, "a-0"): [0, 3], (0, "a-0"): [3], (1, "b-0"): [3]}
    assert plan.tasks(missing) == [plan.Task(0, 3, ("a-0",)), plan.Task(1, 0, ("a-0",)), plan.Task(1, 3, ("a-0", "b-0"))]


@pytest.mark.parametrize("count", [4, 9])
def test_the_bytes_of_a_plan_are_those_on_disk(tmp_path, count):
    store = filled(tmp_path, count, block_rows=8)
    meant = plan.sizes(count, 3, {"graph": GRAPH}, MATRIX, CONTEXT)
    chunks = [path for path in store.folder.rglob("c.*")]
    assert meant.rows_of_block == 8 and meant.total_bytes == sum(path.stat().st_size - 4 for path in chunks)
    assert meant.num_files == len(chunks) + len(list(store.folder.glob("done/*/*.json"))) + len(list(store.folder.glob("images/*")))


def test_a_teacher_may_name_one_layer_alone():
    context = SimpleNamespace(size=(16, 24), num_classes=3, channels={"high": 8}, grids={"high": (2, 3)})
    assert plan.sizes(10, 1, {"graph": GRAPH}, MATRIX, context).feature_bytes == 2 * 8 * 2 * 3
