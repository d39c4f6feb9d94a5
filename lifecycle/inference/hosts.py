"""One engine over the processes of a job: process 0 accepts the requests, and all take the same turns.

A mesh over several hosts computes only if every host launches the same programs in the same order. So each has a runner
of its own, with the same requests, slots and pages, and process 0 tells the others what else a turn depends on
(`inference/turns.py`): a request's tokens once, and a few hundred bytes a turn. What must hold: runners that were equal
before a turn are equal after it. A hash of each dispatch's arguments, in which the tokens so far, the pages, the
settings and the grammars' masks are, goes with it; a process that is about to launch something else ends the job
before it does. SGLang-JAX (`managers/scheduler.py`) broadcasts requests in the same way, without a check.

Engines on the same mesh take their turns one at a time, as a device can run one program only.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import jax
import numpy as np

from lifecycle.core.channel import Connection, Message, Peer
from lifecycle.core.config import ConfigError
from lifecycle.core.rendezvous import JobError
from lifecycle.core.stopping import LOST_STATUS, failure_status
from lifecycle.inference.generation import Generation
from lifecycle.inference.pooling import Embedding
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.turns import Witness

UNLIMITED = 1 << 62  # process 0 has refused what is too much
CLOSE_S = 5.0  # for the others to end
NOTICE_S = 1.0  # a lost process is noticed by its connection, and by the collective that waits for it

type Build = Callable[[str, Witness], Runner]  # of the model with a name


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
        self._answers: SimpleQueue[tuple[Peer, Message] | JobError] = SimpleQueue()
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
    def opening(self, name: str) -> Iterator[None]:
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
        wrong: list[tuple[Peer, str]] = []
        self._is_settled = True
        for _ in self._connections:
            answer = self._answers.get()
            if isinstance(answer, JobError):
                raise answer
            peer, told = answer
            if not is_right(told):
                other = f"it has version {told.get('version', '')[:12]} of the model, and process 0 another one"
                wrong.append((peer, told.get("error", other)))
        self.tell({"kind": "settled", "is_agreed": not wrong})
        return wrong

    def witness(self) -> Witness:
        """Of the engine that is made next."""
        return _Leading(self, len(self._abandon))

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
            case _:
                self._answers.put((peer, message))

    def _lose(self, problem: JobError) -> None:
        with self._changed:
            if self._is_closing or self.problem is not None:
                return
            self.problem = problem
            self._changed.notify_all()
        self._answers.put(problem)
        self._on_lost()
        for abandon in self._abandon:
            abandon()


class _Leading:
    """Sends an engine's turns and dispatches."""

    def __init__(self, leader: Leader, number: int) -> None:
        self._leader, self._number = leader, number

    def begin(self, arrived: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        told, names = [_told(each) for each in arrived], [each.id for each in cancelled]
        self._leader.tell({"kind": "turn", "engine": self._number, "arrived": told, "cancelled": names})

    def agreed[T: (int, bool)](self, value: T) -> T:
        self._leader.tell({"kind": "value", "value": value})
        return value

    def launch(self, rows: Any) -> None:
        self._leader.tell({"kind": "launch", "digest": digest(rows)})


def _told(generation: Generation) -> Message:
    if isinstance(generation, Embedding):
        return {"id": generation.id, "prompt": generation.prompt, "pooling": generation.pooling}
    params = generation.params.model_copy(update={"seed": generation.seed})
    plain = params.model_dump(mode="json", exclude_defaults=True)
    return {"id": generation.id, "prompt": generation.prompt, "params": plain}


def digest(rows: Any) -> str:
    """A hash of a dispatch's arguments: 0.18 ms of CPU time where eight slots have masks of 128,256 tokens."""
    total = hashlib.blake2b(type(rows).__name__.encode(), digest_size=16)
    for leaf in jax.tree.leaves(rows):
        total.update(np.ascontiguousarray(leaf).data)
    return total.hexdigest()


class Follower:
    """Another process's part: it makes the same engines, without their threads, and takes process 0's turns."""

    def __init__(self, connection: Connection, build: Build, own: Peer, on_lost: Callable[[], None]) -> None:
        """`build` loads a model. A thread calls `on_lost` when process 0 has ended, also while this one computes."""
        self._connection, self._build, self._own, self._on_lost = connection, build, own, on_lost
        self._heard: SimpleQueue[Message | JobError] = SimpleQueue()
        self._engines: list[tuple[Runner, WeakValueDictionary[str, Generation]]] = []
        self._opened: Runner | None = None
        self._is_lost = threading.Event()
        self._problem: JobError | None = None
        self._turns = 0
        connection.listen(self._heard.put, self._lose)

    def run(self) -> None:
        """Takes turns until process 0 ends. Raises `JobError` if that is by an error, or if this process is about to
        compute something else."""
        try:
            while (message := self._next())["kind"] != "end":
                self._take(message)
        except Exception as error:
            if failure_status(error) == LOST_STATUS:  # perhaps a collective's words for the end of process 0
                if self._is_lost.wait(NOTICE_S) and (problem := self._problem) is not None and problem is not error:
                    raise problem from error
                raise
            why = str(error) if isinstance(error, JobError) else f"{self._own}: {type(error).__name__}: {error}"
            with suppress(JobError):
                self._connection.send({"kind": "failed", "why": why})
            raise
        finally:
            self._connection.close()

    def ask_to_stop(self) -> None:
        """Asks process 0 to end the server in order. From a signal's handler too: a thread of its own sends."""
        threading.Thread(target=self._connection.send, args=({"kind": "stop"},), daemon=True).start()

    def expect(self, rows: Any) -> None:
        """Raises `JobError` unless process 0 makes the same dispatch now."""
        if (told := self._next()) != {"kind": "launch", "digest": digest(rows)}:
            raise self._out_of_step(f"a dispatch of {type(rows).__name__}", told)

    def agreed[T: (int, bool)](self, own: T) -> T:
        """Process 0's value. Raises `JobError` if it has come to something else."""
        match self._next():
            case {"kind": "value", "value": value}:
                return type(own)(value)
            case told:
                raise self._out_of_step("a value from a clock", told)

    def _take(self, message: Message) -> None:
        match message:
            case {"kind": "open", "name": name}:
                self._open(name)
            case {"kind": "settled", "is_agreed": is_agreed}:
                self._settle(is_agreed)
            case {"kind": "turn", "engine": number, "arrived": arrived, "cancelled": cancelled}:
                runner, known = self._engines[number]
                self._turns += 1
                for told in arrived:
                    known[told["id"]] = _asked(runner, told)
                for name in cancelled:
                    known[name].cancel()
                runner.turn()
            case _:
                raise self._out_of_step("the end of a turn", message)

    def _open(self, name: str) -> None:
        try:
            self._opened = self._build(name, _Following(self))
            answer = {"version": self._opened.model.version}
        except (ValueError, RuntimeError, OSError) as error:  # of a bundle, or a device without room
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._connection.send(answer)

    def _settle(self, is_agreed: bool) -> None:
        """All have made the engine that was opened, or it is none."""
        opened, self._opened = self._opened, None
        if is_agreed and opened is not None:
            self._engines.append((opened, WeakValueDictionary()))
            opened.warm_up()

    def _next(self) -> Message:
        message = self._heard.get()
        if isinstance(message, JobError):
            raise message
        if message == {"kind": "end", "is_ok": False}:
            with suppress(Empty):  # it ends first, and says why; a launcher stops it as soon as this one has ended
                self._heard.get(timeout=CLOSE_S)
            raise JobError("process 0 has ended by an error", is_told=True)
        return message

    def _lose(self, problem: JobError) -> None:
        self._problem = problem
        self._is_lost.set()
        self._heard.put(problem)
        self._on_lost()

    def _out_of_step(self, own: str, told: Message) -> JobError:
        return JobError(
            f"{self._own} is out of step in turn {self._turns}: it has come to {own}, which is not process 0's "
            f"({told['kind']}); start the server again, and if it happens again, report it"
        )


class _Following:
    """Compares a runner's dispatches with process 0's."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def begin(self, arrived: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        pass  # they are process 0's

    def agreed[T: (int, bool)](self, value: T) -> T:
        return self._follower.agreed(value)

    def launch(self, rows: Any) -> None:
        self._follower.expect(rows)


def _asked(runner: Runner, told: Message) -> Generation:
    if "pooling" in told:
        return runner.embed(told["prompt"], told["pooling"])
    return runner.submit(told["prompt"], SamplingParams.model_validate(told["params"]))
