"""Runs a model's Python for the tool `python`, in a process that is closed off first."""

import ast
import contextlib
import io
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from lifecycle.core.isolation.confine import Limits, confine

LONGEST = 100_000  # characters that are sent on


def run(read: Callable[[], str], limits: Limits) -> str:
    """What the code prints, the value of its last expression, and the error that ends it."""
    code = read()
    confine(limits, Path.cwd())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            _run(code)
        except SystemExit as error:
            print(f"SystemExit: {error.code}")
        except BaseException as error:  # whatever the code raises is its output
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if frame.filename == "<code>"]
            print("".join(traceback.format_list(own)) + "".join(traceback.format_exception_only(error)), end="")
    text = printed.getvalue()
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _run(code: str) -> None:
    tree = ast.parse(code, "<code>")
    space = ModuleType("__main__").__dict__
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<code>", "exec"), space)
    if last is not None:
        assert isinstance(last, ast.Expr)
        value = eval(compile(ast.Expression(last.value), "<code>", "eval"), space)
        if value is not None:
            print(repr(value))
