"""SHA-256 of files, computed once: a hash is remembered while the file's size, modification time and inode stay."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

REMEMBERED = ".hashes.json"

type Stat = tuple[int, int, int]  # bytes, nanoseconds, inode


def combined(hashes: Mapping[str, str]) -> str:
    """One hash over names and contents, from each name's SHA-256."""
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(f"{name}\0{hashes[name]}\n".encode())
    return total.hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over relative names and contents."""
    return combined(file_hashes(folder, names))


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file, by its name below `folder`; hashed in as many threads as there are cores."""
    names = list(names)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """The hashes of files below `root`, remembered between processes, there or in the file `path`; if several write,
    the last one wins."""

    def __init__(self, root: Path, path: Path | None = None) -> None:
        self._root, self._path = root, path or root / REMEMBERED
        self._known: dict[str, tuple[Stat, str]] = {}
        try:
            for name, (*stat, sha256) in json.loads(self._path.read_text(encoding="utf-8")).items():
                self._known[name] = (_as_stat(stat), sha256)
        except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged: everything is hashed again
            self._known = {}

    def of(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of each file of a folder below the root; computed for those that are new or look changed."""
        stats = {name: _stat(folder / name) for name in names}
        known = {name: self._known.get(self._key(folder / name)) for name in stats}
        fresh = [name for name, entry in known.items() if entry is None or entry[0] != stats[name]]
        if fresh:
            self._add(folder, file_hashes(folder, fresh), stats)
        return {name: self._known[self._key(folder / name)][1] for name in stats}

    def remember(self, folder: Path, hashes: Mapping[str, str]) -> None:
        """Adds the hashes of files that were just written."""
        self._add(folder, hashes, {name: _stat(folder / name) for name in hashes})

    def _add(self, folder: Path, hashes: Mapping[str, str], stats: Mapping[str, Stat]) -> None:
        self._known |= {self._key(folder / name): (stats[name], sha256) for name, sha256 in hashes.items()}
        present = {name: entry for name, entry in self._known.items() if (self._root / name).is_file()}
        text = json.dumps({name: [*stat, sha256] for name, (stat, sha256) in present.items()})
        unfinished = self._path.with_name(f"{REMEMBERED}.{os.getpid()}")  # evaluations of a bundle may run side by side
        with suppress(OSError):  # on a full disk: what is not remembered is hashed again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_text(text, encoding="utf-8")
                unfinished.replace(self._path)
            finally:
                unfinished.unlink(missing_ok=True)

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self._root))


def _stat(path: Path) -> Stat:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _as_stat(values: list[int]) -> Stat:
    size, mtime_ns, inode = map(int, values)
    return size, mtime_ns, inode
