"""The other processes of a server: each takes the turns of process 0, which `inference/hosts.py` tells it.

It has the same engines without their threads, and compares each dispatch with process 0's before it launches it.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

from lifecycle.core.channel import Connection, Message, Peer
from lifecycle.core.rendezvous import JobError
from lifecycle.core.stopping import LOST_STATUS, failure_status
from lifecycle.inference.adapters import HeldAdapter
from lifecycle.inference.generation import Generation
from lifecycle.inference.hosts import CLOSE_S, NOTICE_S, digest
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.turns import Witness
from lifecycle.model.adapters import Bank
from lifecycle.weights.adapters import read_adapter

UNLIMITED = 1 << 62  # a queue's length: process 0 has refused what is too much

type Build = Callable[[str, Witness], Runner]  # of the model with a name


class Follower:
    """Another process's part: it makes the same engines, without their threads, and takes process 0's turns."""

    def __init__(self, connection: Connection, build: Build, own: Peer, on_lost: Callable[[], None]) -> None:
        """`build` loads a model. A thread calls `on_lost` when process 0 has ended, also while this one computes."""
        self._connection, self._build, self._own, self._on_lost = connection, build, own, on_lost
        self._heard: SimpleQueue[Message | JobError] = SimpleQueue()
        self._engines: list[tuple[Runner, WeakValueDictionary[str, Generation]]] = []
        self._opened: Runner | None = None
        self._staged: Bank = None  # an adapter that has been read
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
            case {"kind": "read", "engine": number, "folder": folder}:
                runner, _ = self._engines[number]
                threading.Thread(target=self._read_adapter, args=(runner, Path(folder)), daemon=True).start()
            case {"kind": "write", "engine": number, "place": place}:
                runner, _ = self._engines[number]
                staged, self._staged = self._staged, None
                if place is not None and runner.adapters is not None:
                    runner.adapters.write(staged, place)
            case _:
                raise self._out_of_step("the end of a turn", message)

    def _open(self, name: str) -> None:
        try:
            self._opened = self._build(name, _Following(self))
            answer = {"version": self._opened.model.version}
        except (ValueError, RuntimeError, OSError) as error:  # of a bundle, or a device without room
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._connection.send(answer)

    def _read_adapter(self, runner: Runner, folder: Path) -> None:
        """In a thread of its own, while turns pass."""
        answer = {"error": "it could not be read; the traceback is in this process's log"}
        try:
            assert runner.adapters is not None, "all processes have the same settings"
            adapter = read_adapter(runner.model.config, folder)
            self._staged = runner.adapters.staged(adapter)
            answer = {"version": adapter.version}
        except (ValueError, RuntimeError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            with suppress(JobError):
                self._connection.send({"kind": "read", **answer})

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
    # whose place another adapter may have later is process 0's to know: here, a use keeps nothing
    adapter = None if told["adapter"] is None else HeldAdapter(**told["adapter"])
    if "pooling" in told:
        return runner.embed(told["prompt"], told["pooling"], adapter)
    params = SamplingParams.model_validate(told["params"])
    return runner.submit(told["prompt"], params, adapter, told["prediction"])
