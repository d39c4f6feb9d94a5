"""One engine over the processes of a job: process 0 accepts the requests, and all take the same turns.

A mesh over several hosts computes only if every host launches the same programs in the same order. So each has a runner
of its own, with the same requests, slots and pages, and process 0 tells the others what else a turn depends on
(`inference/turns.py`): a request's tokens once, and a few hundred bytes a turn. What must hold: runners that were equal
before a turn are equal after it. A hash of each dispatch's arguments, in which the tokens so far, the pages, the
settings and the grammars' masks are, goes with it; a process that is about to launch something else ends the job
before it does. SGLang-JAX (`managers/scheduler.py`) broadcasts requests in the same way, without a check.

An adapter is read by each process, from the same path, while turns pass; if all have read the same numbers, all write
them to the place that process 0 has chosen, between the same two turns.

Engines on the same mesh take their turns one at a time, as a device can run one program only.
"""

import hashlib
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from lifecycle.core.channel import Connection, Message, Peer
from lifecycle.core.config import ConfigError
from lifecycle.core.rendezvous import JobError
from lifecycle.inference.generation import Generation
from lifecycle.inference.pooling import Embedding
from lifecycle.inference.turns import Witness
from lifecycle.weights.adapters import AdapterError

CLOSE_S = 5.0  # for the others to end
NOTICE_S = 1.0  # a lost process is noticed by its connection, and by the collective that waits for it

type Answers = SimpleQueue[tuple[Peer, Message] | JobError]


class Leader:
    """Process 0's part: it tells the others what happens, and hears of one that is lost."""

    def __init__(
        self, connections: Sequence[Connection], on_lost: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        """Threads call `on_lost`, once, when a process has ended or cannot go on (`problem` says which and why), and
        `on_stop` when one is asked to stop."""
        self.taking = threading.RLock()  # held for a turn, and while a model is loaded
        self.problem: JobError | None = None
        self._connections, self._on_lost, self._on_stop = connections, on_lost, on_stop
        self._answers: Answers = SimpleQueue()  # about engines
        self._read: Answers = SimpleQueue()  # about adapters
        self._reading = threading.Lock()  # held while one is loaded
        self._abandon: list[Callable[[], None]] = []
        self._is_settled = self._is_closing = False
        self._changed = threading.Condition()
        self._threads = [one.listen(partial(self._hear, one.peer), self._lose) for one in connections]

    def tell(self, message: Message) -> None:
        """Sends to all others; raises `JobError` if one is lost."""
        if self.problem is not None:
            raise self.problem
        for connection in self._connections:
            connection.send(message)

    @contextmanager
    def opening(self, name: str) -> Generator[None]:
        """While the block makes an engine, the others make its like. It is made in all or in none: an error in one is
        raised here, and no turn passes meanwhile."""
        with self.taking:
            self._is_settled = False
            self.tell({"kind": "open", "name": name})
            try:
                yield
            except Exception:
                if not self._is_settled and self.problem is None:
                    self._settle(lambda _: False)
                raise

    def agree(self, version: str, abandon: Callable[[], None]) -> None:
        """Waits for the others' engines, as the last step before a new one's first dispatch; `abandon` is called when a
        process is lost. Raises `ConfigError` if one cannot make it, or has another version of the model."""
        wrong = [f"{peer}: {why}" for peer, why in self._settle(lambda answer: answer == {"version": version})]
        if wrong:
            raise ConfigError("; ".join(wrong))
        self._abandon.append(abandon)

    def _settle(self, is_right: Callable[[Message], bool]) -> list[tuple[Peer, str]]:
        """Takes an answer of each, and tells all whether every one is right; those that are not."""
        self._is_settled = True
        wrong = self._wrong(self._answers, is_right, "model")
        self.tell({"kind": "settled", "is_agreed": not wrong})
        return wrong

    def _wrong(self, answers: Answers, is_right: Callable[[Message], bool], of: str) -> list[tuple[Peer, str]]:
        """Takes an answer of each of the others; those that are not right."""
        wrong: list[tuple[Peer, str]] = []
        for _ in self._connections:
            answer = answers.get()
            if isinstance(answer, JobError):
                raise answer
            peer, told = answer
            if not is_right(told):
                other = f"it has version {told.get('version', '')[:12]} of the {of}, and process 0 another one"
                wrong.append((peer, told.get("error", other)))
        return wrong

    @contextmanager
    def loading(self, engine: int, folder: Path, version: str, place: int) -> Generator[None]:
        """Lets the others read an adapter; inside the block, in which no turn passes, all write it to the engine's
        place. Raises `AdapterError` before the block unless all have read this version."""
        with self._reading:
            with self.taking:  # else it would come in the middle of a turn
                self.tell({"kind": "read", "engine": engine, "folder": str(folder)})
            wrong = self._wrong(self._read, lambda told: told.get("version") == version, "adapter")
            with self.taking:
                self.tell({"kind": "write", "engine": engine, "place": None if wrong else place})
                if wrong:
                    raise AdapterError("; ".join(f"{peer}: {why}" for peer, why in wrong))
                yield

    def witness(self) -> "Leading":
        """Of the engine that is made next."""
        return Leading(self, len(self._abandon))

    def lost(self, wait_s: float) -> JobError | None:
        """Why a process is lost, if one is, now or within a moment."""
        with self._changed:
            self._changed.wait_for(lambda: self.problem is not None, wait_s)
        return self.problem

    def close(self, is_ok: bool) -> None:
        """Lets the others end, and waits for it for a moment. `is_ok`: not by an error."""
        self._is_closing = True
        for connection in self._connections:
            with suppress(JobError):
                connection.send({"kind": "end", "is_ok": is_ok})
        for thread in self._threads if is_ok else ():
            thread.join(CLOSE_S)

    def _hear(self, peer: Peer, message: Message) -> None:
        match message:
            case {"kind": "failed", "why": why}:
                self._lose(JobError(why))
            case {"kind": "stop"}:
                self._on_stop()
            case {"kind": "read"}:
                self._read.put((peer, message))
            case _:
                self._answers.put((peer, message))

    def _lose(self, problem: JobError) -> None:
        with self._changed:
            if self._is_closing or self.problem is not None:
                return
            self.problem = problem
            self._changed.notify_all()
        self._answers.put(problem)
        self._read.put(problem)
        self._on_lost()
        for abandon in self._abandon:
            abandon()


class Leading(Witness):
    """Sends an engine's turns, dispatches and adapters."""

    def __init__(self, leader: Leader, number: int) -> None:
        self._leader, self._number = leader, number
        self.loading = partial(leader.loading, number)  # of an adapter's folder, version and place

    def begin(self, arrived: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        """Tells the others of the requests."""
        told, names = [_told(each) for each in arrived], [each.id for each in cancelled]
        self._leader.tell({"kind": "turn", "engine": self._number, "arrived": told, "cancelled": names})

    def agreed[T: (int, bool)](self, value: T) -> T:
        """The value, which the others take."""
        self._leader.tell({"kind": "value", "value": value})
        return value

    def launch(self, rows: Any) -> None:
        """Tells the others what they are to launch too."""
        self._leader.tell({"kind": "launch", "digest": digest(rows)})


def _told(generation: Generation) -> Message:
    lease = generation.adapter
    adapter = None if lease is None else {"version": lease.key.hex(), "place": lease.place}
    asked = {"id": generation.id, "prompt": generation.prompt, "adapter": adapter}
    if isinstance(generation, Embedding):
        return {**asked, "pooling": generation.pooling}
    params = generation.params.model_copy(update={"seed": generation.seed})
    plain = params.model_dump(mode="json", exclude_defaults=True)
    return {**asked, "params": plain, "prediction": [*generation.prediction]}


def digest(rows: Any) -> str:
    """A hash of a dispatch's arguments: 0.18 ms of CPU time where eight slots have masks of 128,256 tokens."""
    total = hashlib.blake2b(type(rows).__name__.encode(), digest_size=16)
    for leaf in jax.tree.leaves(rows):
        total.update(np.ascontiguousarray(leaf).data)
    return total.hexdigest()
