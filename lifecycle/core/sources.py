"""The sources behind a module: its own, and those of the modules of its package that it imports, and that these do."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def modules_behind(module: str, package: str) -> set[str]:
    """The module and those of the package that it imports by `from ... import`, directly or through others."""
    found, waiting = {module}, [module]
    while waiting:
        new = {name for name in _imports(source_of(waiting.pop())) if _is_module(name, package)} - found
        found |= new
        waiting += new
    return found


def source_of(module: str) -> bytes:
    """The source of a module."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    return Path(found.origin).read_bytes()


def _imports(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # modules, if it is a package


def _is_module(name: str, package: str) -> bool:
    if not name.startswith(f"{package}."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a function or class of a module
        return False
