"""Results of threads come in the order of their items, a few are computed ahead, and nothing more is begun after an error."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.threads import map_in_order


def test_results_come_in_order_whichever_is_ready_first():
    def work(number):
        time.sleep(0.02 * (number == 0))
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(map_in_order(pool, work, range(20), 8)) == list(range(20))
        assert list(map_in_order(pool, work, [], 8)) == []


@pytest.mark.parametrize("ahead", (1, 2, 5))
def test_items_are_read_no_further_than_asked_for(ahead):
    read = []
    with ThreadPoolExecutor(2) as pool:
        for done, number in enumerate(map_in_order(pool, abs, (read.append(n) or n for n in range(12)), ahead)):
            assert number == done and len(read) <= done + ahead
    assert read == list(range(12))


@pytest.mark.parametrize("stops", ("an error", "the caller"))
def test_an_error_comes_at_its_item_and_nothing_that_waits_is_begun(stops):
    begun, going_on = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 3:
            if stops == "an error":
                raise ValueError("the fourth")
            going_on.wait(10)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = map_in_order(pool, work, range(100), 8)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        if stops == "an error":
            with pytest.raises(ValueError, match="fourth"):
                next(results)
        else:
            results.close()  # what `break` does
            going_on.set()
    assert begun[:4] == [0, 1, 2, 3][: len(begun)] and len(begun) < 11
