"""The sources behind a module: its own, and those of the modules of its package that it imports, and that these do."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def modules_behind(module: str, package: str) -> set[str]:
    """The module and those of the package that it imports by `from ... import`, directly or through others."""
    found, waiting = {module}, [module]
    while waiting:
        new = {name for name in _imports(waiting.pop()) if name.startswith(f"{package}.")} - found
        found |= new
        waiting += new
    return found


def source_of(module: str) -> bytes:
    """The source of a module."""
    file = _file_of(module)
    assert file is not None, module
    return file.read_bytes()


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules that a module imports, of its own package and others that Python finds."""
    named = set[str]()
    for statement in _statements(ast.parse(source_of(module))):
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            named |= {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
    return frozenset(name for name in named if name.partition(".")[0] == module.partition(".")[0] and _file_of(name))


def _statements(body: ast.AST) -> Iterator[ast.AST]:
    """All statements in one; expressions, most of a tree, have none."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for part in getattr(body, field, ()):
            yield part
            yield from _statements(part)


@cache
def _file_of(module: str) -> Path | None:
    """The file of a module; None if it is none, but a function, say. Nothing is imported but the outermost package."""
    root, *names = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        return None
    if not names:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*names)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
