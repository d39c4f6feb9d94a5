"""The code under test, in a closed process of its own: runs it, then answers what its tests ask of it.

Nothing here decides a verdict. The process sees calls with arguments, never a test, an expected value or the place
where the verdict is written; whatever it does to itself, it can answer or end.
"""

import io
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lifecycle.core.isolation.confine import PARENT_DEATH_SIGNAL, Limits, confine, control_process
from lifecycle.core.isolation.frames import read_frame, write_frame
from lifecycle.core.isolation.zygote import keep_only
from lifecycle.evals.verifiers.plain import MARK, decoded, encoded

NAME = "solution"  # the module that tests may import the code from
LARGEST = 1 << 30  # bytes of a question


def start_candidate(limits: Limits) -> tuple[int, int, int]:
    """Forks the process for code that is yet to come; its id, and descriptors to write questions to and read answers
    from. To be called before this process knows anything that the code must not."""
    questions, asks = os.pipe()
    answers, tells = os.pipe()
    if (child := os.fork()) == 0:
        begin_child()
        keep_only(questions, tells)
        try:
            _serve(questions, tells, limits)
        finally:
            os._exit(1)
    os.close(questions)
    os.close(tells)
    return child, asks, answers


def _serve(questions: int, tells: int, limits: Limits) -> None:
    """Runs `source` and answers questions; or `program` for each input that comes, in a process of its own."""
    first = read_frame(questions, LARGEST)
    if "source" in first:
        confine(limits, Path.cwd())
        Candidate(questions, tells).serve(first["source"])
    while True:
        write_frame(tells, run_script(first["program"], first["input"], limits, Path.cwd()))
        first = read_frame(questions, LARGEST)


def begin_child() -> None:
    """Lets the kernel kill this process when its parent ends; and it draws the same numbers every time."""
    random.seed(0)
    parent = os.getppid()
    control_process(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Candidate:
    """The code's namespace, the objects that its tests hold by handle, and the two pipes."""

    def __init__(self, questions: int, answers: int) -> None:
        self._questions, self._answers = questions, answers
        self._held: list[Any] = []
        self._module = ModuleType(NAME)

    def serve(self, source: str) -> None:
        """Runs the code, tells its names, and answers until the tests end."""
        sys.modules[NAME] = self._module
        sys.stdin = io.StringIO()
        try:
            exec(compile(source, f"{NAME}.py", "exec"), self._module.__dict__)
        except SystemExit as error:
            write_frame(self._answers, _raised(RuntimeError(f"the code exits with {error.code!r}")))
            return
        except BaseException as error:  # whatever the code raises is told
            write_frame(self._answers, _raised(error))
            return
        names = {name: value for name, value in vars(self._module).items() if not name.startswith("__")}
        write_frame(self._answers, {"names": {name: self._encoded(value) for name, value in names.items()}})
        while True:
            self._answer(read_frame(self._questions, LARGEST))

    def _answer(self, question: dict[str, Any]) -> None:
        try:
            arguments = [decoded(item, self._found) for item in question["arguments"]]
            named = {name: decoded(item, self._found) for name, item in question.get("named", {}).items()}
            value = DOINGS[question["do"]](self._held[question["on"]], *arguments, **named)
            answer = {"value": self._encoded(value), "arguments": [self._encoded(item) for item in arguments]}
            write_frame(self._answers, answer)
        except BaseException as error:  # as above; the tests may expect it
            write_frame(self._answers, _raised(error))

    def _encoded(self, value: Any) -> Any:
        return encoded(value, self._kept)

    def _kept(self, value: Any) -> dict[str, Any]:
        if isinstance(value, ModuleType):
            return {MARK: "module", "name": value.__name__}
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == NAME:
            bases = [base.__name__ for base in value.__mro__ if base.__module__ == "builtins"]
            return {MARK: "exception", "name": value.__name__, "base": bases[0]}
        place = next((place for place, held in enumerate(self._held) if held is value), len(self._held))
        if place == len(self._held):
            self._held.append(value)
        return {MARK: "handle", "on": place, "type": type(value).__name__}

    def _found(self, mark: dict[str, Any]) -> Any:
        return self._held[mark["on"]] if mark[MARK] == "handle" else self._callback(mark["callback"])

    def _callback(self, number: int) -> Callable[..., Any]:
        """A function of the tests: its call is a question the other way."""

        def call(*arguments: Any) -> Any:
            sent = [self._encoded(item) for item in arguments]
            write_frame(self._answers, {"callback": number, "arguments": sent})
            while "returned" not in (message := read_frame(self._questions, LARGEST)):
                self._answer(message)
            return decoded(message["returned"], self._found)

        return call


# What the tests may do with an object that they hold.
DOINGS: dict[str, Callable[..., Any]] = {
    "call": lambda on, *arguments, **named: on(*arguments, **named),
    "get": getattr,
    "set": setattr,
    "has_instance": lambda on, value: isinstance(value, on),
    "special": lambda on, name, *arguments: _special(on, name)(on, *arguments),
}


def _special(on: Any, name: str) -> Callable[..., Any]:
    if not hasattr(type(on), name):
        raise TypeError(f"{type(on).__name__!r} object has no {name}")
    return getattr(type(on), name)


def _raised(error: BaseException) -> dict[str, Any]:
    try:
        said = str(error)[:2000]
    except Exception:
        said = ""
    bases = [base.__name__ for base in type(error).__mro__ if base.__module__ in ("builtins", NAME)]
    return {"raised": bases, "said": said}


def run_script(source: str, stdin: str, limits: Limits, folder: Path) -> dict[str, Any]:
    """Runs `source` as a program: its wait `status`, and what it `printed`."""
    given, printed = folder / f"in-{os.urandom(8).hex()}", folder / f"out-{os.urandom(8).hex()}"
    given.write_text(stdin, encoding="utf-8", errors="surrogatepass")
    reads, writes = os.open(given, os.O_RDONLY), os.open(printed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    given.unlink()
    printed.unlink()
    if (child := os.fork()) == 0:
        begin_child()
        _as_program(source, reads, writes, limits, folder)
    os.close(reads)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(writes, "rb") as file:
        file.seek(0)
        return {"status": status, "printed": file.read(limits.output_bytes + 1).decode(errors="replace")}


def _as_program(source: str, reads: int, writes: int, limits: Limits, folder: Path) -> None:
    """What the forked process does; never returns."""
    status = 1
    try:
        os.dup2(reads, 0)
        os.dup2(writes, 1)
        keep_only()
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        tempfile.tempdir = str(folder)
        confine(limits, folder)
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(source, "program.py", "exec"), main.__dict__)
        status = 0
    except SystemExit as error:
        status = 0 if error.code in (None, 0) else 1
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)
