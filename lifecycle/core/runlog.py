"""The run log: JSON lines, one record of metrics per line. Trackers and the report read it.

Records of a training stage have a `step`. After a kill the stage resumes from a checkpoint: `rewind` drops the records
of steps that will run again, so that a log never has a step twice.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lifecycle.core.files import write_text

METRICS = "metrics.jsonl"  # of a training stage, in its artifact's folder


class RunLogError(ValueError):
    """A damaged log; the message names the file and the line."""


class RunLog:
    """Appends records to one file; a line that a kill cut short is ignored by `read_log`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()

    def write(self, **record: Any) -> None:
        """Appends one record; its values must be JSON-ready."""
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

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


def rewind(path: Path, step: int) -> None:
    """Keeps the records up to and including `step`, and those without one."""
    kept = [record for record in read_log(path) if record.get("step", 0) <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
