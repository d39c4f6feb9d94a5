"""Isolated processes: limits, what they leave behind, and what a closed one can still do."""

import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle.core.isolation import seccomp
from lifecycle.core.isolation.confine import Limits, unavailable
from lifecycle.core.isolation.pool import IsolatedPool, IsolationError
from lifecycle.testing.waiting import wait_until
from tests.core.isolated_programs import ALLOWED, ATTEMPTS
from tests.scratch_folders import left_behind, scratch_folders

PROGRAM = "tests.core.isolated_programs:answer"
LIMITS = Limits(cpu_s=1, wall_s=120.0, file_bytes=1 << 16)
closed = pytest.mark.skipif(bool(unavailable()), reason=f"processes cannot be closed off here: {unavailable()}")


@pytest.fixture(scope="module")
def pool() -> Iterator[IsolatedPool]:
    pool = IsolatedPool(PROGRAM, LIMITS, is_fresh=False, workers=2)
    yield pool
    pool.close()


@pytest.mark.slow
def test_an_item_that_fails_fails_alone_and_says_why(pool: IsolatedPool) -> None:
    ways = {
        "loop": "CPU time", "leave": "it ended before it had a result",
        "kill": "killed by SIGKILL", "memory": "memory", "raise": "ValueError: no", "flood": "output size",
    }  # fmt: skip
    items = [part for number, word in enumerate(ways) for part in (number, word)]
    results = pool.map(items)
    assert [result.value for result in results[::2]] == [2 * number for number in range(len(ways))]
    assert dict(zip(ways, (result.failure for result in results[1::2]), strict=True)) == ways


@pytest.mark.slow
def test_an_item_that_waits_ends_with_its_time() -> None:
    pool = IsolatedPool(PROGRAM, replace(LIMITS, wall_s=1.5), is_fresh=False, workers=1)
    assert pool.map(["sleep"])[0].failure == "wall time"
    assert pool.map([4])[0].value == 8
    pool.close()


def test_results_have_the_order_of_items_and_none_is_no_call(pool: IsolatedPool) -> None:
    assert [result.value for result in pool.map(list(range(1000)))] == list(range(0, 2000, 2))
    assert pool.map([]) == []


def test_what_is_left_behind_is_ended_and_removed(pool: IsolatedPool) -> None:
    before = scratch_folders()
    assert pool.map(["daemon", 1])[1].value == 2
    left = _children_of([zygote._process.pid for zygote in pool._all])
    assert not left
    assert not left_behind(before)


@closed
def test_where_memory_ends_isolated_work_is_ended_first(pool: IsolatedPool) -> None:
    assert pool.map(["rank"])[0].value == "1000"


def test_nothing_of_the_environment_is_passed_on(pool: IsolatedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hidden")
    fresh = IsolatedPool(PROGRAM, LIMITS, is_fresh=False, workers=1)
    [result] = fresh.map(["environment"])
    fresh.close()
    assert "SECRET_KEY" not in result.value
    assert "hidden" not in str(result.value)


def test_a_lost_process_is_replaced(pool: IsolatedPool) -> None:
    pool.map([1, 2])
    for zygote in pool._all:
        os.kill(zygote._process.pid, signal.SIGKILL)
    assert [result.value for result in pool.map([1, 2, 3, 4])] == [2, 4, 6, 8]


def test_a_program_that_cannot_be_imported_is_an_error_of_all() -> None:
    with pytest.raises(IsolationError, match="no_such_module"):
        IsolatedPool("no_such_module:f", LIMITS, is_fresh=True).map([1])
    with pytest.raises(IsolationError, match="no_such_function"):
        IsolatedPool("tests.core.isolated_programs:no_such_function", LIMITS, is_fresh=True).map([1])


def test_all_ends_with_the_run_even_if_it_is_killed() -> None:
    script = (
        "from lifecycle.core.isolation.pool import *\n"
        f"pool = IsolatedPool('{PROGRAM}_fresh', Limits(wall_s=1000.0), is_fresh=True, workers=1)\n"
        "pool.map([1]); print(pool._all[0]._process.pid, flush=True); pool.map(['sleep'])\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    zygote = int(run.stdout.readline())
    wait_until(lambda: bool(_children_of([zygote])))
    [child] = _children_of([zygote])
    run.kill()
    run.communicate()
    wait_until(lambda: not (_is_alive(zygote) or _is_alive(child)))


@closed
def test_a_closed_process_can_compute_and_no_more() -> None:
    pool = IsolatedPool("tests.core.isolated_programs:attempt", LIMITS, is_fresh=True, workers=1)
    [result] = pool.map([[*ATTEMPTS, *ALLOWED]])
    pool.close()
    assert result.failure == ""
    assert {name for name, error in result.value.items() if not error} == set(ALLOWED)


@closed
@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_closes_off_as_well() -> None:
    script = (
        "from lifecycle.core.isolation.pool import *\n"
        "from tests.core.isolated_programs import ALLOWED, ATTEMPTS\n"
        "pool = IsolatedPool('tests.core.isolated_programs:attempt', Limits(file_bytes=1 << 16), is_fresh=True)\n"
        "[result] = pool.map([[*ATTEMPTS, *ALLOWED]])\n"
        "assert {name for name, error in result.value.items() if not error} == set(ALLOWED), result\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": "/nonexistent"}
    subprocess.run([sys.executable, "-c", script], check=True, user=65534, group=65534, env=environment, cwd="/")


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_filter_decides_as_it_says(machine: str) -> None:
    column = list(seccomp.ARCHITECTURES).index(machine)
    own = 4242
    for name, numbers in seccomp.REFUSED.items():
        if (number := numbers[column]) is not None:
            assert _decided(machine, own, number) == errno.EPERM, name
    kill, prctl, sendto = (62, 129)[column], (157, 167)[column], (44, 206)[column]
    clone = seccomp.CLONE[column]
    cases = [
        (kill, (own,), 0), (kill, (own + 1,), errno.EPERM), (kill, (2**64 - 1,), errno.EPERM),
        (kill, (0,), errno.EPERM), (kill, (own + 2**32,), errno.EPERM), (prctl, (15,), 0), (prctl, (1,), errno.EPERM),
        (sendto, (3, 0, 0, 0, 0), 0), (sendto, (3, 0, 0, 0, 1 << 40), errno.EPERM), (clone, (0x10000,), 0),
        (clone, (17,), errno.EPERM), (seccomp.CLONE3, (0,), errno.ENOSYS), (seccomp.NEWEST_KNOWN + 1, (), errno.ENOSYS),
        (0x40000000 + kill, (own + 1,), errno.ENOSYS), ((72, 25)[column], (0, 8), errno.EPERM),
        ((72, 25)[column], (0, 1), 0), ((302, 261)[column], (0,), 0), ((302, 261)[column], (7,), errno.EPERM),
        ((0, 63)[column], (3,), 0),
    ]  # fmt: skip
    for number, arguments, expected in cases:
        assert _decided(machine, own, number, *arguments) == expected, (number, arguments)
    assert _decided(machine, own, kill, own, architecture=1) == errno.EPERM


def _decided(machine: str, own: int, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says of a call, an error's number or 0: classic BPF, interpreted."""
    which = seccomp.ARCHITECTURES[machine] if architecture is None else architecture
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, which, 0, *(value % 2**64 for value in padded))
    code, place, loaded = seccomp.program(machine, own), 0, 0
    while True:
        kind, if_true, if_false, constant = code[place]
        if kind == seccomp.RETURN:
            return 0 if constant == seccomp.ALLOW else constant & 0xFFFF
        if kind == seccomp.LOAD:
            loaded, if_true, if_false = struct.unpack_from("<I", data, constant)[0], 0, 0
            is_true = True
        else:
            is_true = {
                seccomp.EQUAL: loaded == constant, seccomp.GREATER: loaded > constant,
                seccomp.ANY_BIT: bool(loaded & constant),
            }[kind]  # fmt: skip
        place += 1 + (if_true if is_true else if_false)


def _children_of(parents: list[int]) -> list[int]:
    found = []
    for parent in parents:
        path = Path(f"/proc/{parent}/task/{parent}/children")
        found += [int(word) for word in path.read_text(encoding="utf-8").split()] if path.exists() else []
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
