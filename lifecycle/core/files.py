"""Files that are written whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

FILES = "files.json"  # in a folder that is whole: the size and SHA-256 of each of its files, written last


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it."""
    unfinished = temporary(path)
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def temporary(path: Path) -> Path:
    """The name of a file while it is written; a killed process may leave it."""
    return path.with_name(path.name + ".tmp")


def remove_folders(draft: Path) -> None:
    """Deletes the folders in a draft of files: a killed run has left what it kept there while it worked."""
    for leftover in filter(Path.is_dir, draft.iterdir()):
        shutil.rmtree(leftover)


@contextmanager
def alone(lock: Path) -> Generator[None]:
    """While the block runs, other processes that come here with the same lock's path wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which need not be there yet: false on a read-only mount, whoever asks."""
    return os.access(next(path for path in (folder, *folder.absolute().parents) if path.is_dir()), os.W_OK)


def user_cache() -> Path:
    """The user's folder for what can be made again: `$XDG_CACHE_HOME/lifecycle`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifecycle"
