"""Documents as `lifecycle data peek` shows them: which ones, which columns; lines for people, JSON for programs."""

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.cli.display import in_line, visible
from lifecycle.core.config import ConfigError, nearest
from lifecycle.data.documents import SPLITS, Split, read_batches
from lifecycle.data.inspecting.breakdown import REASONS, reasons_of
from lifecycle.data.inspecting.selected import columns_of, read_where

NAMED = ("id", "source", "path", "license", "language", "text_bytes", "step", "reason", "detail")


@dataclass(frozen=True)
class Choice:
    """Which documents are shown; None: all. `reason`: a step or one of its reasons, the first one or a further one."""

    split: Split | None
    source: str | None
    reason: str | None

    @property
    def splits(self) -> Sequence[Split]:
        """Where they are."""
        if self.reason is not None and self.split not in (None, "removed"):
            raise ConfigError(f"{self.split} documents have no reason {self.reason!r}; only removed ones have reasons")
        return ("removed",) if self.reason is not None else SPLITS if self.split is None else (self.split,)

    def flags(self, rows: pa.RecordBatch, first: int) -> NDArray[np.bool_]:
        """Which of these rows are chosen."""
        del first
        flags = np.ones(rows.num_rows, bool)
        if self.source is not None:
            flags &= rows["source"].to_numpy(zero_copy_only=False) == self.source
        if self.reason is not None:
            has_reason = np.zeros(rows.num_rows, bool)
            for names, places, _ in reasons_of(rows):
                has_reason[places] |= self.reason in names
            flags &= has_reason
        return flags


def chosen_rows(folder: Path, choice: Choice, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The chosen documents, in order, with these columns and their `split`; raises `ConfigError` if there are none."""
    reads = [*(["source"] if choice.source is not None else []), *([REASONS] if choice.reason is not None else [])]
    num_rows = 0
    for split in choice.splits:
        for row in read_where(folder, split, reads, choice.flags, columns):
            num_rows += 1
            yield {"split": split, **row}
    if not num_rows:
        given = {"split": choice.split, "source": choice.source, "reason": choice.reason}
        asked = ", ".join(f"{name} {value!r}" for name, value in given.items() if value is not None)
        there = _reasons_in(folder) if choice.reason is not None else set()
        told = f"{nearest(str(choice.reason), there)}; reasons: {', '.join(sorted(there))}" if there else ""
        raise ConfigError(f"{folder}: no document{' with ' if asked else ''}{asked}{told}")


def _reasons_in(folder: Path) -> set[str]:
    """The steps that have removed documents, and their reasons."""
    batches = read_batches(folder, "removed", [REASONS])
    return {name for rows in batches for names, *_ in reasons_of(rows) for name in names}


def checked_columns(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """The names of columns; raises `ConfigError` for one that documents do not have."""
    known = columns_of(folder).names
    for name in names:
        if name not in known:
            raise ConfigError(f"documents have no column {name!r}{nearest(name, known)}; they have {', '.join(known)}")
    return names


def as_line(row: dict[str, Any]) -> str:
    """A document as a line of JSON; bytes as hexadecimal digits, times as texts."""
    return json.dumps(row, default=lambda value: value.hex() if isinstance(value, bytes) else str(value)) + "\n"


def as_text(columns: Sequence[str], num_chars: int) -> Callable[[dict[str, Any]], str]:
    """Writes documents for people: a heading, then these columns, and with `text` among them the first `num_chars`
    characters of the text (0: all)."""

    def write(row: dict[str, Any]) -> str:
        others = [f"    {name}: {in_line(str(row[name]))}\n" for name in columns if name != "text"]
        return heading(row) + "".join(others) + (excerpt(row["text"], num_chars) if "text" in columns else "") + "\n"

    return write


def heading(row: dict[str, Any]) -> str:
    """What a document is and what became of it, in a line, and why in another one."""
    fate = f"removed by {row['step']}: {row['reason']}" if row["step"] else row["split"]
    named = (fate, f"{row['source']}:{row['path']}", row["id"], row["language"], row["license"])
    line = "  ".join(in_line(part or "-") for part in named)
    detail = f"    {in_line(row['detail'])}\n" if row["detail"] else ""
    return f"{line}  {row['text_bytes']:,} bytes\n{detail}"


def excerpt(text: str, num_chars: int, size: int | None = None) -> str:
    """The first `num_chars` characters of a text, indented (0: all); `size`: its characters, if not all are given."""
    shown = text[:num_chars] if num_chars else text
    left = (len(text) if size is None else size) - len(shown)
    more = f"\n… {left:,} more characters" if left else ""
    return textwrap.indent(visible(shown.rstrip("\n") + more), " " * 8, lambda line: True) + "\n"
