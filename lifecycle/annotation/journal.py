"""A journal of what was asked and answered: lines are added as answers come, and none is asked for twice.

The first line says by which settings they were made; with others the journal is refused. Each further line is an entry:
its key, the rows that came of the answer, and why there are none if there are none. What must hold: after a kill at any
moment the whole lines count, and the rest of a line is cut off. In memory are a key and a place for each entry.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lifecycle.annotation.claimed import claimed
from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary

type Row = Mapping[str, Any]

ROWS = ""  # the fault of an entry that has rows


class Journal:
    """A context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens the journal, and makes it if it is not there. Raises `ConfigError` for one by other settings, and for
        one that another process has open."""
        self._path, self._entries = path, dict[str, tuple[int, str]]()  # (place in the file, fault) by key
        self._file = claimed(path, settings)
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise

    def _take(self) -> None:
        while True:
            at = self._file.tell()
            if (entry := self._read_line()) is None:
                return
            self._know(entry, at)

    def _read_line(self) -> dict[str, Any] | None:
        """The next line; None at the end, where what a kill has left of one is cut off."""
        at = self._file.tell()
        line = self._file.readline()
        if not line.endswith(b"\n"):
            self._file.truncate(at)
            return None
        try:
            return json.loads(line)
        except ValueError:
            raise ConfigError(f"{self._path}: damaged at byte {at}; delete it") from None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def add(self, key: str, rows: Sequence[Row], fault: str = ROWS) -> None:
        """Adds an entry."""
        assert key not in self and bool(rows) == (fault == ROWS), key
        at = self._append({"key": key, "fault": fault, "rows": [dict(row) for row in rows]})
        self._know({"key": key, "fault": fault}, at)

    def _append(self, line: Mapping[str, Any]) -> int:
        at = self._file.seek(0, 2)
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return at

    def _know(self, entry: Mapping[str, Any], at: int) -> None:
        self._entries[entry["key"]] = at, entry["fault"]

    def faults(self, keys: Iterable[str]) -> dict[str, int]:
        """Why some of these entries have no rows: how many by reason, the most frequent first."""
        counts = Counter(self._entries[key][1] for key in keys if key in self)
        return {fault: count for fault, count in counts.most_common() if fault != ROWS}

    def rows(self, keys: Iterable[str]) -> Iterator[Row]:
        """The rows of these entries, in this order; of keys that have no entry there are none."""
        for key in keys:
            if key in self:
                self._file.seek(self._entries[key][0])
                yield from json.loads(self._file.readline())["rows"]

    def write(self, path: Path, keys: Iterable[str]) -> int:
        """Writes these rows as JSONL, whole or not at all; returns their number."""
        number = 0
        with open(unfinished := temporary(path), "w", encoding="utf-8", newline="\n") as file:
            for row in self.rows(keys):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                number += 1
        unfinished.replace(path)
        return number
