"""Processes meet: all go on, or all are told the same reason, with the names of those who are missing or differ."""

import socket
import threading
import time
from collections.abc import Mapping

import pytest

from lifecycle.core import rendezvous
from lifecycle.core.rendezvous import JobError, Member, _report, _written, meet
from lifecycle.testing.waiting import LIMIT_S

FACTS = {"code": "1", "config": "a"}


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def outcomes(
    address: str, count: int, facts: Mapping[int, Mapping[str, str]], wait_s: float = LIMIT_S, **errors: str
) -> list[str]:
    """What each process of `facts` is told, "" if it may go on; `errors` by host."""
    told = dict.fromkeys(facts, "-")

    def come(index: int) -> None:
        own = Member(index, f"host{index}", facts[index], errors.get(f"host{index}", ""))
        try:
            assert meet(address, count, own, wait_s, {3: "node4"}) == address
            told[index] = ""
        except JobError as error:
            told[index] = str(error)
            assert error.is_told == (index > 0)  # process 0 says it
            assert error.is_lost == ("did not come" in str(error) and not errors)  # a new start may help

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
    address = free_address()
    told = outcomes(address, 4, dict.fromkeys((0, 2), FACTS), wait_s=0.5)
    here = "here are process 0 on host0, process 2 on host2"
    assert told == [f"2 of 4 processes did not come to {address}: 1, 3 on node4; {here}"] * 2


def test_few_of_many_are_named() -> None:
    told = outcomes(free_address(), 30, dict.fromkeys(range(20), FACTS), wait_s=1.0)
    assert "10 of 30 processes did not come" in told[19] and "27 and 2 more; here are" in told[19]
    assert told[19].endswith("process 7 on host7 and 12 more")


def test_an_error_of_one_process_ends_all_and_is_named() -> None:
    told = outcomes(free_address(), 3, dict.fromkeys(range(3), FACTS), host2="no such file")
    assert told == ["process 2 on host2: no such file"] * 3


def test_an_error_of_all_processes_is_one() -> None:
    told = outcomes(free_address(), 3, dict.fromkeys(range(3), FACTS), host0="bad", host1="bad", host2="bad")
    assert told == ["bad"] * 3
    told = outcomes(free_address(), 2, dict.fromkeys(range(2), FACTS), host0="bad", host1="worse")
    assert told == ["process 0 on host0: bad; process 1 on host1: worse"] * 2


def test_who_is_missing_is_named_beside_an_error() -> None:
    told = outcomes(free_address(), 3, {0: FACTS}, 0.2, host0="bad")
    assert told[0].startswith("process 0 on host0: bad; 2 of 3 processes did not come to")


def test_the_port_of_an_attempt_before_is_waited_for() -> None:
    address = free_address()
    host, _, port = address.rpartition(":")
    held = socket.create_server((host, int(port)))
    free = threading.Timer(0.3, held.close)
    free.start()
    assert outcomes(address, 2, {0: FACTS}, 0.6)[0].startswith("1 of 2 processes did not come")
    free.join()


def test_who_came_early_waits_for_the_meeting_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                threading.Event().wait(0.5)  # another process comes
                connection.sendall(b'["", false]\n')

        first = threading.Thread(target=answer)
        first.start()
        where, over = server.getsockname(), time.monotonic()
        assert _report(where, Member(1, "host1", FACTS), over, LIMIT_S) == _written(where)
        first.join()


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(JobError, match=r"process 0 cannot listen at 192\.0\.2\.99:20000"):
        meet("192.0.2.99:20000", 2, Member(0, "host0", FACTS), LIMIT_S)


def test_who_runs_something_else_is_named() -> None:
    told = outcomes(free_address(), 3, {0: FACTS, 1: FACTS, 2: FACTS | {"config": "b"}})
    assert told == ["process 2 on host2 has config b, process 0 on host0 has a; all processes need the same"] * 3


def test_without_process_0_its_address_is_named() -> None:
    address = free_address()
    with pytest.raises(JobError, match=f"process 0 does not answer at {address}"):
        meet(address, 2, Member(1, "host1", FACTS), wait_s=0.3)


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
