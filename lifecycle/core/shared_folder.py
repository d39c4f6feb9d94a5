"""Whether the processes of a job see the same folder: a checkpoint is made of files of all of them."""

import secrets
import time
from pathlib import Path

from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import from_writer, has_joined, host_names, is_writer

WAIT_S = 20.0  # a network file system may show a new file late
LOOK_AGAIN_S = 0.1
LOOK_S = 5.0  # where hosts may have folders of their own; taken for such, a shared one works too

_apart = False


def is_apart() -> bool:
    """Whether the processes of this job have folders of their own, as the last `look_for_shared` found."""
    return _apart


def is_seen(path: Path, limit_s: float) -> bool:
    """Whether this process sees, within a time, what another has made: a network file system may show it late."""
    deadline = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_AGAIN_S)
    return True


def require_shared(folder: Path) -> None:
    """Raises `ConfigError`, naming the hosts that do not see it, unless all processes of the job see this folder as the
    writing process does. All processes make the same call."""
    if lacking := _lacking(folder, WAIT_S):
        raise ConfigError(
            f"{folder}: not the same folder on {', '.join(lacking)} as on the first host; set root to a folder that "
            "all hosts mount, or to an address in object storage"
        )


def look_for_shared(folder: Path) -> list[str]:
    """Finds out whether all processes of the job see this folder, which `is_apart` answers from then on; the hosts that
    do not. All processes make the same call."""
    global _apart
    lacking = _lacking(folder, LOOK_S)
    _apart = bool(lacking)
    return lacking


def _lacking(folder: Path, wait_s: float) -> list[str]:
    if not has_joined():
        return []
    mark = folder / f".shared-{from_writer(secrets.randbits(30))}"
    if is_writer():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    from_writer(True)  # it is there
    lacking = host_names(where=not is_seen(mark, wait_s))
    if is_writer():
        mark.unlink()
    return lacking
