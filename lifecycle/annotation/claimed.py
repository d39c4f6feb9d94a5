"""Files that grow by appending, of which one process at a time is the writer, and which say by what they were made."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lifecycle.core.config import ConfigError


def claimed(path: Path, settings: Mapping[str, Any]) -> BinaryIO:
    """Opens a file to read and to append to, and makes it if it is not there; the next byte to read is the first behind
    its first line, which says by which settings it is made. Until it is closed no other process can claim it. Raises
    `ConfigError` for one by other settings, one that another process has claimed, and one without such a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _agree(file, path, settings)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: another process writes it; wait for its end") from None
    except BaseException:
        file.close()
        raise
    return file


def _agree(file: BinaryIO, path: Path, settings: Mapping[str, Any]) -> None:
    file.seek(0)
    line = file.readline()
    if not line.endswith(b"\n"):  # new, or what a kill has left
        file.truncate(0)
        file.write(json.dumps(dict(settings), ensure_ascii=False).encode() + b"\n")
        file.flush()
        return
    try:
        known = json.loads(line)
    except ValueError:
        raise ConfigError(f"{path}: damaged at byte 0; delete it") from None
    if known != settings:
        changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
        told = ", ".join(f"{name} {known.get(name)!r} -> {settings.get(name)!r}" for name in changed)
        raise ConfigError(f"{path}: made with other settings ({told}); delete it, or write elsewhere")
