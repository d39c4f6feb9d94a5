"""Messages between processes of a job: in order, only from those who belong to it, and the end of one is heard."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lifecycle.core import channel, distributed
from lifecycle.core.channel import Connection, connect
from lifecycle.core.rendezvous import JobError
from lifecycle.testing.waiting import LIMIT_S, wait_until


class Words:
    """JAX's key-value service, of the threads of this process."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def key_value_set(self, name: str, value: str) -> None:
        self.told[name] = value

    def blocking_key_value_get(self, name: str, _: int) -> str:
        wait_until(lambda: name in self.told)
        return self.told[name]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Iterator[Words]:
    """A job of three, whose processes are threads called 0, 1 and 2."""
    words = Words()
    monkeypatch.setattr(distributed, "process_index", lambda: int(threading.current_thread().name))
    monkeypatch.setattr(distributed, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "coordinator_host", lambda: "127.0.0.1")
    monkeypatch.setattr(distributed, "words_of_job", lambda: words)
    yield words


def started(name: str, found: dict[str, Any]) -> threading.Thread:
    def run() -> None:
        try:
            found[name] = connect()
        except JobError as error:
            found[name] = error

    thread = threading.Thread(target=run, name=name)
    thread.start()
    return thread


def address(words: Words) -> tuple[str, int]:
    return "127.0.0.1", json.loads(words.blocking_key_value_get(channel.WORD, 0))[0]


STRANGE = [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\xff\xff\xff\xff", b"\0\0\0\3nul", b""]


def test_only_processes_of_the_job_are_connected_and_messages_keep_their_order(words: Words) -> None:
    found: dict[str, Any] = {}
    threads = [started("0", found)]
    for text in [*STRANGE, channel._packed({"secret": "0" * 64, "index": 1, "host": "h"})]:
        with socket.create_connection(address(words)) as stranger:
            stranger.sendall(text)
    threads += [started(name, found) for name in ("2", "1")]
    for thread in threads:
        thread.join(LIMIT_S)
    hub: list[Connection] = found["0"]
    assert [one.peer.index for one in hub] == [1, 2]
    heard: list[dict[str, Any]] = []
    ended: list[JobError] = []
    (line,) = found["2"]
    line.listen(heard.append, ended.append)
    sent = [{"number": number, "text": "\u00e9" * number} for number in range(0, 300_000, 50_000)]
    for message in sent:
        hub[1].send(message)
    wait_until(lambda: len(heard) == len(sent))
    assert heard == sent
    hub[1].close()
    wait_until(lambda: bool(ended))
    assert ended[0].is_lost and str(ended[0]).startswith("process 0 on ") and "was lost" in str(ended[0])
    with pytest.raises(JobError, match="was lost"):
        while True:  # the first ones may still find room
            line.send({})


def test_a_process_that_does_not_connect_is_named(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "CONNECT_S", 0.05)
    found: dict[str, Any] = {}
    started("0", found).join(LIMIT_S)
    assert isinstance(found["0"], JobError) and found["0"].is_lost and "process 0: 1, 2" in str(found["0"])
