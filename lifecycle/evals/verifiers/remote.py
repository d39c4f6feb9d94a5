"""The code under test as its tests see it: functions, classes and objects that live in another process.

A call sends its arguments as data (`plain.py`) and gets data back; lists, dicts and sets that the code changes in place
are changed here too. How objects of the code compare with each other, and what becomes of their sum, the code says.
With data they do neither: an object that is larger than every number, equals all, or contains all, would pass any test.
"""

import builtins
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

from lifecycle.core.isolation.frames import FrameError, read_frame, write_frame
from lifecycle.evals.verifiers.plain import MARK, decoded, encoded

STRANGE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError)  # for no data of ours


class CandidateError(Exception):
    """The code under test has ended, raised what is no exception of Python's, or answered what is no data."""


class Link:
    """The two pipes to the code's process, and what both sides know by number or name."""

    def __init__(self, child: int, asks: int, answers: int, most_bytes: int) -> None:
        self._child, self._asks, self._answers, self._most_bytes = child, asks, answers, most_bytes
        self._callbacks: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self._end = ""

    def printed(self, source: str, stdin: str) -> dict[str, Any]:
        """Runs the code as a program: its wait `status`, and what it `printed`."""
        self._write({"program": source, "input": stdin})
        return self._message()

    def names(self, source: str) -> dict[str, Any]:
        """Runs the code: what it defines; raises what it raised."""
        self._write({"source": source})
        message = self._message()
        if "raised" in message:
            raise self._exception(message)
        return {name: self._decoded(value) for name, value in message["names"].items()}

    def ask(self, do: str, on: int, *arguments: Any, **named: Any) -> Any:
        """Does something with an object of the code: the value, or the exception that the code raised."""
        sent = [encoded(item, self._kept) for item in arguments]
        question = {"do": do, "on": on, "arguments": sent}
        self._write(question | {"named": {name: encoded(item, self._kept) for name, item in named.items()}})
        while "callback" in (message := self._message()):
            values = [self._decoded(item) for item in message["arguments"]]
            self._write({"returned": encoded(self._callbacks[message["callback"]](*values), self._kept)})
        if "raised" in message:
            raise self._exception(message)
        for mine, before, after in zip(arguments, sent, message["arguments"], strict=True):
            if before != after:
                _replace(mine, self._decoded(after))
        return self._decoded(message["value"])

    def _write(self, value: Any) -> None:
        with suppress(BrokenPipeError):  # then there is no answer either, which says why
            write_frame(self._asks, value)

    def _message(self) -> dict[str, Any]:
        try:
            message = read_frame(self._answers, self._most_bytes)
        except FrameError as error:
            raise CandidateError(f"its answer is no data: {error}") from None
        except EOFError:
            raise CandidateError(f"it ended: {self._ended()}") from None
        if not isinstance(message, dict):
            raise CandidateError("its answer is no data")
        return message

    def _ended(self) -> str:
        if not self._end:
            status = os.waitpid(self._child, 0)[1]
            self._end = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "it left the process"
        return self._end

    def _decoded(self, value: Any) -> Any:
        try:
            return decoded(value, self._found)
        except STRANGE as error:
            raise CandidateError(f"its answer is no data: {error}") from None

    def _found(self, mark: dict[str, Any]) -> Any:
        if mark[MARK] == "module":
            return _module(str(mark["name"]))
        if mark[MARK] == "exception":
            known = self._exceptions.get(mark["name"])
            return known or self._exceptions.setdefault(mark["name"], _exception_class(mark["name"], mark["base"]))
        return Remote(self, int(mark["on"]), str(mark["type"]))

    def _kept(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {MARK: "handle", "on": value._remote_on}
        if not callable(value):
            raise TypeError(f"a test passes {type(value).__name__}, which is no data")
        self._callbacks.append(value)
        return {MARK: "callback", "callback": len(self._callbacks) - 1}

    def _exception(self, message: dict[str, Any]) -> Exception:
        said = str(message.get("said", ""))
        for name in message["raised"]:
            kind = self._exceptions.get(name, getattr(builtins, str(name), None))
            if isinstance(kind, type) and issubclass(kind, Exception):
                with suppress(TypeError):  # a few need more than a message; the next base does not
                    return kind(said)
        return CandidateError(f"it raised {message['raised'][:1]}: {said}")


def _module(name: str) -> ModuleType | None:
    """A module of Python's own that the code had imported: its tests use it too."""
    return importlib.import_module(name) if name.partition(".")[0] in sys.stdlib_module_names else None


def _exception_class(name: object, base: object) -> type[Exception]:
    known = getattr(builtins, str(base), Exception)
    kind: type[Exception] = known if isinstance(known, type) and issubclass(known, Exception) else Exception
    return types.new_class(str(name), (kind,))


def _replace(mine: Any, content: Any) -> None:
    """Changes a container in place, as the code has changed its copy."""
    if isinstance(mine, list | bytearray):
        mine[:] = content
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(content)


class Remote:
    """A function, a class or an object of the code."""

    def __init__(self, link: Link, on: int, kind: str) -> None:
        vars(self).update(_remote_link=link, _remote_on=on, _remote_type=kind)

    _remote_link: Link
    _remote_on: int
    _remote_type: str

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it, in its process."""
        return self._remote_link.ask("call", self._remote_on, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._remote_link.ask("get", self._remote_on, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_link.ask("set", self._remote_on, name, value)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._remote_link.ask("has_instance", self._remote_on, value) is True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._special("__eq__", other) is True

    def __hash__(self) -> int:
        return int(self._special("__hash__"))

    def __bool__(self) -> bool:
        for name in ("__bool__", "__len__"):
            with suppress(TypeError):  # the code has no such method
                return self._special(name) not in (False, 0)
        return True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._special("__iter__")
        if not isinstance(iterator, Remote):
            raise TypeError("the code's __iter__ returns no iterator")
        while True:
            try:
                yield iterator._special("__next__")
            except StopIteration:
                return

    def _special(self, name: str, *arguments: Any) -> Any:
        return self._remote_link.ask("special", self._remote_on, name, *arguments)


def _forwarded(name: str, needs_remote: bool) -> Callable[..., Any]:
    def method(self: Remote, *arguments: Any) -> Any:
        if needs_remote and not all(isinstance(argument, Remote) for argument in arguments):
            return NotImplemented
        return self._special(name, *arguments)

    return method


UNARY = "len getitem setitem delitem str repr enter exit next int float index abs neg"
BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lt le gt ge"
for _names, _needs_remote in ((UNARY, False), (BINARY, True)):
    for _name in _names.split():
        setattr(Remote, f"__{_name}__", _forwarded(f"__{_name}__", _needs_remote))
