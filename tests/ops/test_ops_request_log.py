"""The request log under load, with a full queue, without disk, locked, killed and closed."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lifecycle.ops import request_log
from lifecycle.ops.cost import DevicePrice
from lifecycle.ops.database import DatabaseError
from lifecycle.ops.request_log import RequestLog, RequestLogConfig, RequestRecord
from lifecycle.testing.waiting import LIMIT_S, wait_until
from tests.read_only import read_only


def record(number: int = 0, **fields: Any) -> RequestRecord:
    own: dict[str, Any] = {"id": f"r{number}", "time": 1e9 + number, "route": "/v1/completions", "version": "v"}
    own |= {"status": 200} | fields
    return RequestRecord(**own)


def stored(path: Path, columns: str = "id") -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT {columns} FROM requests ORDER BY rowid").fetchall()


def test_records_are_written_with_their_cost(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.sqlite", price=DevicePrice("EUR", 3.6))
    fields = {
        "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 9, "latency_s": 0.5, "first_token_s": 0.1,
        "device_s": 2.0,
    }  # fmt: skip
    log.write(record(**fields))
    log.write(record(1, status=400))
    assert log.close().written == 2
    columns = (
        "finish_reason, prompt_tokens, completion_tokens, latency_s, first_token_s, device_s, status, cost, currency"
    )
    assert stored(log.path, columns) == [
        ("stop", 7, 9, 0.5, 0.1, 2.0, 200, pytest.approx(0.002), "EUR"),
        (None, 0, 0, 0.0, None, 0.0, 400, 0.0, "EUR"),
    ]
    again = RequestLog(log.path)
    again.write(record(2))
    again.close()
    assert stored(log.path) == [("r0",), ("r1",), ("r2",)]


@pytest.mark.parametrize("content", [False, True])
def test_texts_are_logged_only_if_asked_for(tmp_path: Path, content: bool) -> None:
    log = RequestLog(tmp_path / "log.sqlite", RequestLogConfig(content=content))
    log.write(record(prompt="my secret \ud800", completion="answer"))
    log.close()
    assert stored(log.path, "prompt, completion") == [("my secret ?", "answer") if content else (None, None)]
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"my secret" in everything) is content


@pytest.mark.parametrize(
    "fields", [{"prompt_tokens": 2**70}, {"latency_s": float("nan")}, {"status": None}, {"status": -1}, {"key": "sk-1"}]
)
def test_what_the_database_cannot_hold_is_refused_in_the_caller(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**fields)


def test_a_locked_file_delays_the_log_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queue of 100, the file locked, 150 records: the event loop does not notice, 50 are dropped and counted."""
    monkeypatch.setattr("lifecycle.ops.database.BUSY_TIMEOUT_S", 0.1)
    log = RequestLog(tmp_path / "log.sqlite", capacity=100)

    async def serve() -> None:
        for number in range(1, 151):
            log.write(record(number))
            await asyncio.sleep(0)

    with closing(sqlite3.connect(log.path, autocommit=True)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        log.write(record(0))
        wait_until(lambda: log.counts.failures > 0)  # the thread holds record 0 and cannot take more
        asyncio.run(serve())  # comes back although the lock is held until below
        counts = log.counts
        assert (counts.written, counts.waiting, counts.dropped) == (0, 101, 50)
        assert "locked" in counts.last_error
        holder.execute("ROLLBACK")
    counts = log.close()
    assert (counts.written, counts.waiting, counts.dropped) == (101, 0, 50)
    assert stored(log.path) == [(f"r{number}",) for number in range(101)]


def test_closing_without_a_writable_file_ends_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.ops.database.BUSY_TIMEOUT_S", 0.05)
    log = RequestLog(tmp_path / "log.sqlite")
    with closing(sqlite3.connect(log.path, autocommit=True)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        for number in range(5):
            log.write(record(number))
        counts = log.close()
    assert (counts.written, counts.waiting, counts.dropped) == (0, 0, 5)


FULL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from lifecycle.ops.request_log import RequestLog, RequestRecord
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
log = RequestLog(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # writing beyond fails, as on a full disk
def send(first, last):
    for i in range(first, last):
        log.write(RequestRecord(id=f"r{i}", time=i, route="x" * 200, version="v", status=200))
send(0, 500)
while not log.counts.failures:
    time.sleep(0.01)
send(500, 600)  # the server goes on
before = log.counts
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
after = log.close()
print(before.waiting + before.written, before.dropped, before.last_error, "|", after.written, after.dropped)
"""


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    during, _, after = done.stdout.strip().partition(" | ")
    assert during.startswith("600 0 ")
    assert any(words in during for words in ("full", "disk I/O error"))
    assert after == "600 0"
    assert len(set(stored(path))) == 600


KILLED = """
import sys, time
from pathlib import Path
from lifecycle.ops.request_log import RequestLog, RequestRecord
log = RequestLog(Path(sys.argv[1]))
for i in range(10**9):
    log.write(RequestRecord(id=f"r{i}", time=i, route="x", version="v", status=200))
    time.sleep(0.001)
    if i % 50 == 0:
        print(log.counts.written, flush=True)
"""


def test_a_killed_server_loses_at_most_what_was_waiting(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    server = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    written = 0
    while written < 100:
        written = int(server.stdout.readline())
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    result = [row[0] for row in stored(path)]
    assert len(result) >= written
    assert result == [f"r{i}" for i in range(len(result))]
    log = RequestLog(path)
    log.write(record())
    assert log.close().written == 1


def test_a_damaged_log_is_named_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(DatabaseError, match=r"log\.sqlite: not a readable request log .*move it away"):
        RequestLog(path)


def test_a_log_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    RequestLog(tmp_path / "log.sqlite").close()
    script = (
        "import sys; from pathlib import Path; from lifecycle.ops.request_log import RequestLog\n"
        "try: RequestLog(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)"
    )
    for name, message in {"log.sqlite": "its folder is read-only", "new.sqlite": "set requests.log=FILE"}.items():
        assert message in read_only(tmp_path, [sys.executable, "-c", script, str(tmp_path / name)])


def test_a_log_damaged_while_it_is_written_does_not_raise(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.sqlite")
    log.path.write_bytes(b"\xff" * 20_000)
    log.write(record())
    wait_until(lambda: log.counts.failures > 0)
    log.write(record(1))
    counts = log.close()
    assert (counts.written, counts.dropped) == (0, 2)
    assert "not a readable request log" in counts.last_error


def test_many_records_are_cheap(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.sqlite")
    records = [record(number) for number in range(request_log.CAPACITY)]
    start = time.process_time()
    for each in records:
        log.write(each)
    assert log.close().written + log.counts.dropped == request_log.CAPACITY
    assert time.process_time() - start < 5  # 0.1 s on one idle core
