"""Workers: order, errors, what they import, and that they end when their parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.step_costs import add_input, spending, step_costs
from lifecycle.data.tagging.workers import Alone, WorkerDiedError, Workers, call_alone
from lifecycle.testing.waiting import LIMIT_S


def _slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def _die_of_three(item: tuple[int, Path]) -> int:
    number, folder = item
    if number == 3:
        (folder / f"{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _fail(number: int) -> int:
    raise ValueError(f"item {number}")


def test_results_come_with_their_numbers_from_other_processes() -> None:
    with Workers(2) as workers:
        found = dict(workers.results(_slow_first, range(6), 1))
    assert sorted(found) == list(range(6))
    results = [found[number] for number in range(6)]
    assert all(not isinstance(result, WorkerDiedError) and result[0] == n for n, result in enumerate(results))
    assert os.getpid() not in {result[1] for result in results if not isinstance(result, WorkerDiedError)}
    assert list(Workers(1).results(_slow_first, range(3), 1)) == [(n, (n, os.getpid())) for n in range(3)]


def test_a_worker_that_dies_takes_no_other_item_with_it(tmp_path: Path) -> None:
    """The items that were in its pool are done again; it is tried again, too."""
    items = [(number, tmp_path) for number in range(8)]
    with Workers(2) as workers:
        found = dict(workers.results(_die_of_three, items, 3))
    assert [found[number] for number in range(8) if number != 3] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(found[3], WorkerDiedError) and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("count", [1, 2])
def test_a_single_item_that_may_end_its_process_is_done_elsewhere(count: int, tmp_path: Path) -> None:
    with Workers(count, apart=True) as workers:
        (died,) = workers.results(_die_of_three, [(3, tmp_path)], 2, apart=True)
        (well,) = workers.results(_slow_first, [1], 2, apart=True)
        (here,) = workers.results(_slow_first, [1], 2)
    assert isinstance(died[1], WorkerDiedError) and len(list(tmp_path.iterdir())) == 2
    assert isinstance(well[1], tuple) and well[1][1] != os.getpid() and here == (0, (1, os.getpid()))


def test_an_error_reaches_the_caller() -> None:
    with Workers(2) as workers, pytest.raises(ValueError, match=r"item \d"):
        list(workers.results(_fail, range(3), 3))


def test_processes_stay_for_the_next_work_until_the_end() -> None:
    with Workers(2) as workers:
        found = [dict(workers.results(_slow_first, range(6), 1)) for _ in range(2)]
        first, second = [{result[1] for result in results.values() if isinstance(result, tuple)} for results in found]
        assert len(first | second) <= 2
        with pytest.raises(ValueError, match="item"):
            list(workers.results(_fail, range(3), 3))
        assert len(list(workers.results(_slow_first, range(6), 1))) == 6  # by others
    for pid in first | second:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_dies_between_two_pieces_of_work_is_replaced() -> None:
    with Workers(2) as workers:
        one = dict(workers.results(_slow_first, range(3), 2))[0]
        assert isinstance(one, tuple)
        os.kill(one[1], signal.SIGKILL)
        found = dict(workers.results(_slow_first, range(6), 2))
    assert sorted(result[0] for result in found.values() if isinstance(result, tuple)) == list(range(6))


def test_workers_import_neither_jax_nor_the_main_module(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import sys\nprint('main runs')\nsys.modules['jax'] = sys\nfrom lifecycle.data.tagging import tagging\n"
        "from lifecycle.data.tagging.workers import Workers, call_alone\n"
        "names = \"('jax', 'daft', 'lifecycle.data.selecting.pipeline')\"\n"
        "asked = f\"[m for m in {names} if m in __import__('sys').modules]\"\n"
        "print(call_alone(eval, asked), *dict(Workers(2).results(eval, [asked] * 2, 1)).values())\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    forked = "['lifecycle.data.selecting.pipeline']"
    assert done.stdout.split("\n") == ["main runs", f"[] {forked} {forked}", ""]


def _busy(seconds: float) -> None:
    started = time.process_time()
    while time.process_time() < started + seconds:
        pass


def test_cpu_time_of_workers_counts_as_this_process_s() -> None:
    before = cpu_seconds()
    with Workers(2) as workers:
        list(workers.results(_busy, [0.2] * 4, 1))
    assert 0.8 <= cpu_seconds() - before < 8


def _spend(num_bytes: int) -> None:
    add_input(num_bytes)
    with spending("busy"):
        _busy(0.02)


@pytest.mark.parametrize("work", [[10, 20], [30]])
@pytest.mark.parametrize("count", [1, 2])
def test_what_steps_spend_in_workers_is_known_here(count: int, work: list[int]) -> None:
    with step_costs() as costs:
        with Workers(count, apart=True) as workers:
            list(workers.results(_spend, work, 1, apart=True))
        list(Workers(1).results(_spend, [100], 1))
    assert costs.num_bytes == 130 and costs.cpu_s.keys() == {"busy"}
    assert costs.cpu_s["busy"] >= 0.02 * (1 + len(work))


def test_cpu_time_of_a_process_of_its_own_is_known_after_each_call_and_counts_once() -> None:
    before = cpu_seconds()
    with Alone() as alone:
        alone(_busy, 0.3)
        meanwhile = cpu_seconds() - before
    assert meanwhile >= 0.3
    assert cpu_seconds() - before < meanwhile + 0.25  # of its end


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "from lifecycle.data.tagging.workers import Workers\n"
        "work = [\"__import__('os').getpid()\"] * 2 + [\"__import__('time').sleep(3600)\"] * 2\n"
        "for _, pid in Workers(2).results(eval, work, 1):\n"
        "    print(pid, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert len({int(parent.stdout.readline()) for _ in range(2)}) <= 2
    parent.kill()
    parent.communicate(timeout=LIMIT_S)  # the workers hold the same pipe: it ends when the last of them has


def test_call_alone_runs_elsewhere_and_ends() -> None:
    pid = call_alone(os.getpid)
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
