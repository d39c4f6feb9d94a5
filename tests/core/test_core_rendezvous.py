"""Processes meet: all go on, or all are told the same reason, with the names of those who are missing or differ."""

import socket
import threading
from collections.abc import Mapping

import pytest

from lifecycle.core.rendezvous import JobError, Member, meet
from lifecycle.testing.waiting import LIMIT_S

FACTS = {"code": "1", "config": "a"}


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def outcomes(address: str, count: int, facts: Mapping[int, Mapping[str, str]], wait_s: float = LIMIT_S) -> list[str]:
    """What each process of `facts` is told; "" if it may go on."""
    told = dict.fromkeys(facts, "-")

    def come(index: int) -> None:
        try:
            meet(address, count, Member(index, f"host{index}", facts[index]), wait_s)
            told[index] = ""
        except JobError as error:
            told[index] = str(error)

    threads = [threading.Thread(target=come, args=(index,)) for index in facts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return list(told.values())


def test_all_come_and_the_port_is_free_again_at_once() -> None:
    address = free_address()
    assert outcomes(address, 4, dict.fromkeys(range(4), FACTS)) == [""] * 4
    host, _, port = address.rpartition(":")
    socket.create_server((host, int(port))).close()


def test_who_is_missing_is_named_by_all_that_came() -> None:
    told = outcomes(free_address(), 4, dict.fromkeys((0, 2), FACTS), wait_s=1.0)
    assert told == ["2 of 4 processes did not come: 1, 3; here are process 0 on host0, process 2 on host2"] * 2


def test_who_runs_something_else_is_named() -> None:
    told = outcomes(free_address(), 3, {0: FACTS, 1: FACTS, 2: FACTS | {"config": "b"}})
    assert told == ["process 2 on host2 has config b, process 0 on host0 has a; all processes need the same"] * 3


def test_without_process_0_its_address_is_named() -> None:
    address = free_address()
    with pytest.raises(JobError, match=f"process 0 does not answer at {address}"):
        meet(address, 2, Member(1, "host1", FACTS), wait_s=0.5)


def test_two_jobs_at_one_address_are_told_so() -> None:
    address = free_address()
    twins = [threading.Thread(target=lambda: outcomes(address, 3, {1: FACTS}, 5.0)) for _ in range(2)]
    for twin in twins:
        twin.start()
    with pytest.raises(JobError, match="process 1 on host1 and process 1 on host1 have the same index"):
        meet(address, 3, Member(0, "host0", FACTS), LIMIT_S)
    for twin in twins:
        twin.join(LIMIT_S)


@pytest.mark.parametrize("line", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"index": 9}\n', b"[]\n"])
def test_strangers_are_ignored(line: bytes) -> None:
    address = free_address()
    host, _, port = address.rpartition(":")

    def intrude() -> None:
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=LIMIT_S) as stranger:
                    stranger.sendall(line)
                return
            except OSError:
                continue

    stranger = threading.Thread(target=intrude)
    stranger.start()
    own = threading.Thread(target=lambda: outcomes(address, 2, {0: FACTS}))
    own.start()
    stranger.join(LIMIT_S)
    assert outcomes(address, 2, {1: FACTS}) == [""]
    own.join(LIMIT_S)
