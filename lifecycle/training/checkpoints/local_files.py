"""One process's part of a local checkpoint on its host's disk: a folder with two files.

`arrays` has the pieces one after the other; `index.json` says where each is, with its dtype, shape and SHA-256, and has
the facts (data state, meta). It is under a SHA-256 of its own. What must hold: a folder has its final name only when it
is complete, and a piece that is not what was written is as good as missing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lifecycle.core.files import temporary, write_text

ARRAYS, INDEX = "arrays", "index.json"


def write_part(folder: Path, pieces: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes pieces and JSON-ready facts as `folder`, whole or not at all."""
    unfinished = temporary(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    listed, offset = {}, 0
    with open(unfinished / ARRAYS, "wb") as file:
        for name, piece in pieces.items():
            content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            file.write(content)
            sha256 = hashlib.sha256(content).hexdigest()
            listed[name] = [offset, content.size, str(piece.dtype), list(piece.shape), sha256]
            offset += content.size
        file.flush()
        os.fsync(file.fileno())
    text = json.dumps({"pieces": listed, "facts": facts})
    write_text(unfinished / INDEX, json.dumps([hashlib.sha256(text.encode()).hexdigest(), text]))
    unfinished.replace(folder)


class LocalPart:
    """A folder that `write_part` wrote, or what is left of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = _read_index(folder / INDEX)
        self.facts: dict[str, Any] | None = content and content["facts"]
        self._pieces: dict[str, list[Any]] = content["pieces"] if content else {}

    def has(self, name: str, shape: tuple[int, ...], dtype: Any) -> bool:
        """Whether the piece is here, of this shape and dtype, with the bits that were written."""
        if name not in self._pieces or self._pieces[name][2:4] != [str(jnp.dtype(dtype)), list(shape)]:
            return False
        try:
            return hashlib.sha256(self._bytes(name)).hexdigest() == self._pieces[name][4]
        except OSError:
            return False

    def read(self, name: str) -> np.ndarray:
        """The piece."""
        _, _, dtype, shape, _ = self._pieces[name]
        return self._bytes(name).view(jnp.dtype(dtype)).reshape(shape)

    def _bytes(self, name: str) -> np.ndarray:
        offset, size, *_ = self._pieces[name]
        return np.fromfile(self._folder / ARRAYS, np.uint8, size, offset=offset)


class HostParts:
    """What is left of a step on one host, which had one process of the run or several."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._parts = [LocalPart(folder) for folder in folders]
        self._found: dict[str, LocalPart | None] = {}  # of the pieces that were asked for

    @property
    def facts(self) -> dict[str, Any] | None:
        """Those that were written with any part: all have the same."""
        return next((part.facts for part in self._parts if part.facts is not None), None)

    def has(self, name: str, shape: tuple[int, ...], dtype: Any) -> bool:
        """Whether a part has the piece, as `LocalPart.has`; each piece is hashed once."""
        if name not in self._found:
            self._found[name] = next((part for part in self._parts if part.has(name, shape, dtype)), None)
        return self._found[name] is not None

    def read(self, name: str) -> np.ndarray:
        """A piece that a part has."""
        part = self._found[name]
        assert part is not None
        return part.read(name)


def _read_index(path: Path) -> dict[str, Any] | None:
    try:
        sha256, text = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, cut or not what was written
        return None
    return json.loads(text) if hashlib.sha256(str(text).encode()).hexdigest() == sha256 else None
