"""The request log: one row in SQLite for each request that the server answered.

`write` puts the record into a bounded queue and returns; a thread writes the queued records in one transaction. What
must hold: the log never makes a request wait and never brings the server down.

- Disk full, file locked or damaged: the thread keeps its records, retries every second, and counts each failure. When
  the disk has space again, the backlog is written.
- Queue full (10,000 records): the newest record is dropped and counted.
- Server killed: the records of the last quarter of a second are lost, and any backlog. On a clean shutdown `close`
  writes the rest; records that it cannot write count as dropped.

Prompts and answers are not logged unless `content` is set. Keys and headers are never logged.
"""

import queue
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from lifecycle.core.config import Section
from lifecycle.ops.cost import DevicePrice
from lifecycle.ops.database import DatabaseError, Schema, create_database, session

CAPACITY = 10_000  # records; about 10 MB without content
GATHER_S = 0.25  # batches writes: a transaction costs the disk the same for many requests as for one
LARGEST_BATCH = 1_000
RETRY_S = 1.0

SCHEMA = Schema(
    name="request log",
    application_id=0x4C43524C,  # "LCRL"
    version=3,
    tables="""
    CREATE TABLE requests (
        id TEXT NOT NULL, time REAL NOT NULL, route TEXT NOT NULL, version TEXT NOT NULL, status INTEGER NOT NULL,
        finish_reason TEXT, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        latency_s REAL NOT NULL, first_token_s REAL, device_s REAL NOT NULL, prompt TEXT, completion TEXT, user TEXT,
        cost REAL NOT NULL, currency TEXT NOT NULL
    ) STRICT;
    CREATE INDEX requests_by_time ON requests (time);
    """,
)


class RequestLogConfig(Section):
    """Where requests are logged, and whether with their texts."""

    log: Path | None = None  # the log's file; None: `requests.db` in the run's folder, and no log for a bundle alone
    content: bool = False


# Values that SQLite cannot store are rejected or replaced here, in the caller: one such record would block the log.
type Text = Annotated[str, BeforeValidator(lambda text: text.encode("utf-8", "replace").decode() if text else text)]
type Count = Annotated[int, Field(ge=0, le=2**53)]


class RequestRecord(BaseModel):
    """A request as the server saw it; times in seconds, `time` since the epoch, at its arrival."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    time: FiniteFloat
    route: Text
    version: Text  # content hash of the model that answered
    status: Count  # HTTP
    finish_reason: Text | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    latency_s: FiniteFloat = 0.0
    first_token_s: FiniteFloat | None = None  # from arrival
    device_s: FiniteFloat = 0.0  # its share of the time that dispatches occupied the engine's devices
    prompt: Text | None = None
    completion: Text | None = None
    user: Text | None = None  # KEY/LABEL: the name of the key that was used, the client's label for whom it asks


@dataclass(frozen=True)
class LogCounts:
    """Counts of the records; `last_error` is the newest failure's text, "" if there was none."""

    written: int
    waiting: int
    dropped: int
    failures: int
    last_error: str


class RequestLog:
    """Appends records to a log file from any thread, without waiting."""

    def __init__(
        self,
        path: Path,
        config: RequestLogConfig | None = None,
        price: DevicePrice | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        """Opens or creates the file; raises `DatabaseError` if it is not a request log, or cannot be written."""
        self.path = path
        self.config = config or RequestLogConfig()
        self.price = price or DevicePrice()
        try:
            create_database(path, SCHEMA)
        except OSError as error:
            raise DatabaseError(f"{path}: cannot make a request log: {error}; set requests.log=FILE") from None
        with session(path, SCHEMA, write=True):  # rejects such a file now, not at the first request
            pass
        self._queue: queue.Queue[RequestRecord] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._written = self._dropped = self._failures = self._held = 0
        self._last_error = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def write(self, record: RequestRecord) -> None:
        """Queues a record; never waits, and never raises for a full disk or queue."""
        if not self.config.content:
            record = record.model_copy(update={"prompt": None, "completion": None})
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            with self._lock:
                self._dropped += 1

    @property
    def counts(self) -> LogCounts:
        """How many records are written, waiting and dropped, and how many writes failed."""
        with self._lock:
            waiting = self._queue.qsize() + self._held
            return LogCounts(self._written, waiting, self._dropped, self._failures, self._last_error)

    def close(self, timeout_s: float = 10.0) -> LogCounts:
        """Writes the queued records and ends the thread; those that cannot be written count as dropped."""
        self._closing.set()
        self._thread.join(timeout_s)
        return self.counts

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(GATHER_S)
            while batch := self._take():
                if not self._keep_trying(batch):
                    self._give_up(batch)

    def _take(self) -> list[RequestRecord]:
        batch: list[RequestRecord] = []
        with self._lock:
            while len(batch) < LARGEST_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            self._held = len(batch)
        return batch

    def _keep_trying(self, batch: list[RequestRecord]) -> bool:
        """Writes a batch, however long it takes; False if it still cannot be written when the log is closed."""
        while True:
            is_last = self._closing.is_set()
            try:
                self._insert(batch)
            except (DatabaseError, sqlite3.Error, OSError) as error:
                with self._lock:
                    self._failures += 1
                    self._last_error = str(error)
                if is_last:
                    return False
                self._closing.wait(RETRY_S)
            else:
                with self._lock:
                    self._written += len(batch)
                    self._held = 0
                return True

    def _insert(self, batch: list[RequestRecord]) -> None:
        price = self.price
        rows = [(*record.model_dump().values(), price.money(record.device_s), price.currency) for record in batch]
        with session(self.path, SCHEMA, write=True) as db:
            db.executemany(_INSERT, rows)

    def _give_up(self, batch: list[RequestRecord]) -> None:
        while batch:
            with self._lock:
                self._dropped += len(batch)
            batch = self._take()


_COLUMNS = [*RequestRecord.model_fields, "cost", "currency"]
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
