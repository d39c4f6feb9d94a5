"""The run log: JSON lines, one record of metrics per line. Trackers and the report read it.

Records of a training stage have a `step`. After a kill the stage resumes from a checkpoint: `rewind` drops the records
of steps that will run again, so that a log never has a step twice.
"""

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lifecycle.core.files import write_text

FULL = (errno.ENOSPC, errno.EDQUOT)  # of the disk, or of the user's share of it
METRICS = "metrics.jsonl"  # of a training stage, in its artifact's folder
ROLLOUTS = "rollouts.jsonl"  # beside it, of a stage that samples: some completions with their rewards


class RunLogError(ValueError):
    """A damaged log; the message names the file and the line."""


class RunLog:
    """Appends records to one file; a line that a kill cut short is ignored by `read_log`.

    While the disk is full, what it does not take waits in memory, so that a run may go on until there is room. At each
    moment the file is the beginning of the log; its last line may be cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._waiting = b""

    def write(self, **record: Any) -> None:
        """Appends one record; its values must be JSON-ready. Raises `OSError`, but not for a full disk."""
        self._waiting += (json.dumps(record) + "\n").encode()
        self._write_waiting()

    def close(self) -> None:
        """Closes the file; raises `OSError` if the disk is full and records still wait: they are lost."""
        with self._file:
            full = self._write_waiting()
        if full is not None:
            count = self._waiting.count(b"\n")
            raise OSError(full.errno, f"{full.strerror}, so the last {count} records are lost", str(self.path))

    def _write_waiting(self) -> OSError | None:
        """Writes what waits, as far as the disk takes it; the error of a full one."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if error.errno not in FULL:
                raise
            return error
        return None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The complete records of a log; a last line cut by a kill is skipped. Raises `RunLogError` for a damaged one."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _record(line, f"{path}:{number}")


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise RunLogError(f"{where}: damaged ({error}); delete this line") from None
    if not isinstance(record, dict):
        raise RunLogError(f"{where}: damaged (a {type(record).__name__}, no record); delete this line")
    return record


def rewind(path: Path, step: int, added: Iterable[Mapping[str, Any]] = ()) -> None:
    """Keeps the records up to and including `step`, and those without one, and adds others, in one write."""
    kept = [*(record for record in read_log(path) if record.get("step", 0) <= step), *map(dict, added)]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
