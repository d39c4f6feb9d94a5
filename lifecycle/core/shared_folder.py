"""Whether the processes of a job see the same folder: its checkpoints are made of files of all of them."""

import secrets
import time
from pathlib import Path

from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import from_writer, has_joined, host_names, is_writer

WAIT_S = 20.0  # a network file system may show a new file late


def require_shared(folder: Path) -> None:
    """Raises `ConfigError`, naming the hosts that do not see it, unless all processes of the job see this folder as the
    writing process does. All processes make the same call."""
    if not has_joined():
        return
    mark = folder / f".shared-{from_writer(secrets.randbits(30))}"
    if is_writer():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    from_writer(True)  # it is there
    deadline = time.monotonic() + WAIT_S
    while not (is_there := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    lacking = host_names(where=not is_there)
    if is_writer():
        mark.unlink()
    if lacking:
        raise ConfigError(
            f"{folder}: not the same folder on {', '.join(lacking)} as on the first host; a job's processes share it: "
            "set root, or for a root in object storage XDG_CACHE_HOME, to a folder that all hosts mount"
        )
