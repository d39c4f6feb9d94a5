"""What scores code: the tests, in a process in which the code under test never runs (`candidate.py`)."""

import builtins
import inspect
import sys
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lifecycle.core.isolation.confine import ConfineError, Limits, confine, unavailable
from lifecycle.evals.verifiers.candidate import NAME, start_candidate
from lifecycle.evals.verifiers.remote import Link
from lifecycle.evals.verifiers.test_sources import names_used

MOST_PER_BYTE = 6  # of a byte of output in JSON
RESERVED = set(dir(builtins)) | sys.stdlib_module_names  # what a test says of these it does not mean of the code


type Namespace = dict[str, Any]


def check(read: Callable[[], dict[str, Any]], limits: Limits) -> dict[str, Any]:
    """Scores one piece of code: `{"passed": [...], "why": the first failure}`.

    `item` has `source` and either `cases`, of `input` and `output`, for which the code is run as a program, or
    `tests`, sources that use its names, and `entry_point`, the name for which a function `check` of theirs is called.
    """
    if problem := unavailable():
        raise ConfineError(f"code cannot be closed off: {problem}")
    np.random.seed(0)  # imported before, forks have it at once; code that draws numbers draws the same every time
    link = Link(*start_candidate(limits), MOST_PER_BYTE * limits.output_bytes)
    item = read()
    return check_cases(link, item) if "cases" in item else check_tests(link, item, limits)


def check_cases(link: Link, item: dict[str, Any]) -> dict[str, Any]:
    """Runs the code for each case until one fails; of a program's output, spaces that end a line do not count."""
    passed: list[bool] = []
    why = ""
    for case in item["cases"]:
        found = link.printed(item["source"], case["input"])
        right = found["status"] == 0 and lines(found["printed"]) == lines(case["output"])
        why = why or ("" if right else f"wait status {found['status']}, printed {found['printed'][:200]!r}")
        passed.append(right)
        if not right and not item["counts_each"]:
            break
    return {"passed": passed, "why": why}


def lines(text: str) -> list[str]:
    """A program's output as it is compared."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def check_tests(link: Link, item: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Runs the code, then the tests, until one fails."""
    confine(limits, Path.cwd())
    sys.stdout = sys.stderr
    try:
        names = meant(link.names(item["source"]), item["tests"], item["entry_point"])
    except Exception as error:  # of the code; nothing of it can pass
        return {"passed": [False], "why": _said(error)}
    _let_import(names)
    passed: list[bool] = []
    why = ""
    for unit in units(item["tests"], names, item["entry_point"]):
        try:
            unit()
            passed.append(True)
        except BaseException as error:  # a test may fail in any way
            passed.append(False)
            why = why or _said(error)
            if not item["counts_each"]:
                break
    return {"passed": passed, "why": why}


def meant(names: Namespace, sources: list[str], entry_point: str) -> Namespace:
    """The code's names as tests see them.

    Never what Python itself looks up, such as `__builtins__`. And none of builtins and modules, or
    `def all(_): return True` would pass many tests; unless tests use no other name, as in `assert sum(10, 15) == 6`.
    """
    plain = {name: value for name, value in names.items() if name.isidentifier() and not name.startswith("__")}
    own = {name: value for name, value in plain.items() if name not in RESERVED}
    used = {entry_point}.union(*map(names_used, sources))
    if not used & (own.keys() | {NAME}):
        return plain
    return own | {name: value for name, value in plain.items() if isinstance(value, ModuleType)}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _let_import(names: Namespace) -> None:
    """Tests may say `from solution import f`."""
    module = sys.modules[NAME] = ModuleType(NAME)
    vars(module).update(names)


def units(sources: list[str], names: Namespace, entry_point: str) -> Iterator[Callable[[], Any]]:
    """The tests, each a function that raises if the code is wrong: what a source runs when it is executed, then its
    functions `test_*`, its `unittest` cases, and `check(entry_point)`."""
    for source in sources:
        space = {**names, "__name__": "tests"}
        body = partial(exec, compile(source, "tests.py", "exec"), space)
        yield body
        own = {name: value for name, value in space.items() if name not in names or value is not names[name]}
        for name, value in own.items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase):
                yield from _cases(value)
            elif name.startswith("test") and inspect.isfunction(value):
                yield value
        if entry_point and inspect.isfunction(own.get("check")):
            yield partial(own["check"], names.get(entry_point))


def _cases(kind: type[unittest.TestCase]) -> Iterator[Callable[[], Any]]:
    for name in unittest.defaultTestLoader.getTestCaseNames(kind):
        yield kind(name).debug  # unlike `run`, raises
