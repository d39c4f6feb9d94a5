"""Functions in threads: results in order, what is raised, and what takes too long."""

import threading
import time

from lifecycle.core.deadlines import Failed, in_threads


def test_results_are_in_order_and_failures_beside_them() -> None:
    def fails() -> int:
        raise LookupError("none")

    works = [lambda n=n: n * n for n in range(20)]
    found = in_threads([*works, fails], 30, at_once=4)
    assert found == [*(n * n for n in range(20)), Failed("LookupError: none")]
    assert in_threads([], 30, 4) == []


def test_no_more_than_so_many_run_at_once() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def counted() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    in_threads([counted] * 12, 30, at_once=3)
    assert 1 <= most[0] <= 3


def test_what_hangs_is_given_up_and_holds_up_nobody() -> None:
    ends = threading.Event()
    found = in_threads([lambda: ends.wait(60), lambda: ends.wait(60), lambda: 5], 0.2, at_once=1)
    ends.set()
    assert found[:2] == [Failed("no answer in 0.2 s", is_late=True)] * 2
    assert found[2] == 5 or isinstance(found[2], Failed)  # on a machine too busy to start a thread in time
