"""The registry of a run in object storage: one SQLite file, copied whole.

SQLite needs a file system's locks, which object storage has not. So the registry is used in the run's local folder; who
changes it fetches it first and writes it back. What must hold: a registry that has moves which the other one lacks is
never overwritten by it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.files import temporary, write_text
from lifecycle.core.store import Missing, Store, StoreError


@dataclass(frozen=True)
class Read:
    """The store's registry, None if it has none, and the hashes of `RegistryCopy` when it was read."""

    content: bytes | None
    last: dict[str, str]


class RegistryCopy:
    """The registry at a local path and its copy in a store. `require` raises if this process may not write there."""

    def __init__(self, store: Store, path: Path, require: Callable[[], None] = lambda: None) -> None:
        self._store, self._path, self._require = store, path, require
        self._name = path.name
        self._synced = path.with_name(f".{path.name}.synced")  # the hashes of both when they were last the same

    def pull(self) -> None:
        """Fetches the registry if the store has another one than the local one was made of.

        Raises `StoreError` if both have changed since they were the same.
        """
        self.take(self.read())

    def read(self) -> Read:
        """Reads the store's registry, which may take minutes; changes nothing."""
        last = self._last()
        try:
            return Read(self._store.read(self._name), last)
        except Missing:
            return Read(None, last)

    def take(self, read: Read) -> None:
        """The second half of `pull`; does nothing if the local registry was fetched or written since the first."""
        content = read.content
        if self._last() != read.last:
            return
        if content is None:
            self._synced.unlink(missing_ok=True)  # the local one, if there is any, is to be written
            return
        stored, local = hashlib.sha256(content).hexdigest(), self._snapshot()
        last = self._last()
        if stored == last["stored"]:
            return
        if local is not None and _hash(local) != last["local"]:
            raise StoreError(
                f"{self._store.url}/{self._name} and {self._path} have both changed since they were the same; keep "
                "one: delete the other"
            )
        for name in ("", "-wal", "-shm"):
            self._path.with_name(self._name + name).unlink(missing_ok=True)
        temporary(self._path).write_bytes(content)
        temporary(self._path).replace(self._path)
        fetched = self._snapshot()
        assert fetched is not None, "it was just written"
        self._remember(stored, _hash(fetched))

    @property
    def is_changed(self) -> bool:
        """Whether the local registry has changed since it was fetched or written."""
        local = self._snapshot()
        return local is not None and _hash(local) != self._last()["local"]

    def push(self) -> None:
        """Writes the registry to the store if it has changed since it was fetched or written."""
        local = self._snapshot()
        if local is None or _hash(local) == self._last()["local"]:
            return
        self._require()
        self._store.write(self._name, local)
        self._remember(_hash(local), _hash(local))

    def _snapshot(self) -> bytes | None:
        """The database as one file, with what its write-ahead log has; None if there is none."""
        if not self._path.is_file():
            return None
        with closing(sqlite3.connect(self._path)) as db:
            return db.serialize()

    def _last(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._synced.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # never the same, or not known: both count as changed
            return {"stored": "", "local": ""}

    def _remember(self, stored: str, local: str) -> None:
        write_text(self._synced, json.dumps({"stored": stored, "local": local}))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
