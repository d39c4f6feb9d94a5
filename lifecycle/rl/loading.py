"""The user's own Python, named in a run file as `FILE.py:name` or `package.module:name`.

A file is found, hashed and looked through without running it; what it imports is not part of its hash.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lifecycle.core.config import ConfigError, nearest


@dataclass(frozen=True)
class UserCode:
    """A function or class of the user's: the file it is in, and its name there. `what`: the setting, for messages."""

    path: Path
    module: str  # empty for a file that is named by its path
    name: str
    what: str

    @classmethod
    def named(cls, spec: str, what: str) -> "UserCode":
        """Finds `FILE.py:name` or `package.module:name`, and runs nothing of it; raises `ConfigError` for none."""
        place, _, name = spec.rpartition(":")
        is_file = place.endswith(".py")
        path = Path(place) if is_file else _module_file(place)
        if not path.is_file():
            raise ConfigError(f"{what} {spec}: there is no file {path}")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"{what} {spec}: {path} is no Python: {error}") from None
        if is_file and name not in (defined := set(_defined(tree))):
            raise ConfigError(f"{what} {spec}: {path} defines no {name!r}{nearest(name, defined)}")
        return cls(path, "" if is_file else place, name, f"{what} {spec}")

    @property
    def sha256(self) -> str:
        """The hash of the file's content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def load(self) -> Callable[..., Any]:
        """Imports it; raises `ConfigError` if that fails."""
        try:
            module = importlib.import_module(self.module) if self.module else _run_file(self.path)
        except Exception as error:  # of the user's code
            raise ConfigError(f"{self.what} cannot be imported: {type(error).__name__}: {error}") from error
        found = getattr(module, self.name, None)
        if not callable(found):
            raise ConfigError(f"{self.what}: there is no function {self.name!r}{nearest(self.name, vars(module))}")
        return found


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"there is no module {name!r}; for a file write FILE.py:function")
    return Path(spec.origin)


def _defined(tree: ast.Module) -> list[str]:
    """Names at the top of a file: functions, classes, assignments, imports."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def _run_file(path: Path) -> ModuleType:
    """A file as a module of its own name, which may import its neighbours, as a script may."""
    path = path.resolve()
    name = f"lifecycle_rewards_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what dataclasses and pickles look up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module
