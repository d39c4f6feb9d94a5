"""A file's rows, encoded for a training stage, and which of them it cannot learn from.

What must hold: each row is kept whole, shortened as the stage says, or dropped, and counted as that; the report names
the first few that were dropped by file and line. The columns of rows: `text/row_columns.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lifecycle.text.chat import ChatError
from lifecycle.text.interface import TokenizerError
from lifecycle.text.row_encoder import Encoded, EncodedGroup, EncodedPrompt, EncodedRow, UnusableRow, segments_of
from lifecycle.text.row_files import RowData, RowError, read_rows

LISTED = 20  # dropped rows that a report lists; the counts cover all
EXAMPLES = 3  # of those that a message names
DROP, KEEP_START, KEEP_END = "drop", "keep_start", "keep_end"  # what is done about rows that are too long


@dataclass
class RowsReport:
    """How many of a file's rows were kept, shortened and dropped, and why; `names` has those that were kept."""

    path: str
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def name(self, kept: int) -> str:
        """`FILE:LINE` of a kept row, numbered from 0."""
        return self.names[kept]

    def keep(self, name: str) -> None:
        """Counts a row as kept."""
        self.kept += 1
        self.names.append(name)

    def drop(self, name: str, reason: str, detail: str = "") -> None:
        """Counts a row as dropped, and keeps the first few with their places as examples."""
        self.dropped[reason] += 1
        if len(self.examples) < LISTED:
            self.examples.append(f"{name}: {reason}{detail}")

    @property
    def said(self) -> str:
        """What became of the rows, in one line."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        cut = f", {self.truncated:,} of them shortened" if self.truncated else ""
        return f"{self.kept:,} of {self.rows:,} rows kept{cut}" + (f"; dropped: {reasons}" if reasons else "")

    def require(self, max_dropped: float, fix: str) -> None:
        """Raises `RowError`, with the reasons and the first examples, if no row is kept, or if a larger share than
        `max_dropped` is dropped."""
        listed = "".join(f"\n  {example}" for example in self.examples[:EXAMPLES])
        if not self.kept:
            problem = f"no row of {self.rows} is usable"
            raise RowError(f"{self.path}: {problem}" + (f":{listed}" if listed else "; it is empty"))
        share = self.dropped.total() / self.rows
        if share > max_dropped:
            raise RowError(
                f"{self.path}: {share:.1%} of the rows would be dropped, and rows.max_dropped={max_dropped:g}: "
                f"{self.said}; {fix}:{listed}"
            )

    def plain(self) -> dict[str, Any]:
        """JSON-ready, for stats."""
        counts = {"rows": self.rows, "kept": self.kept, "truncated": self.truncated, "dropped": dict(self.dropped)}
        return counts | {"examples": self.examples}


def load_rows[E: Encoded](
    path: Path,
    encode: Callable[[RowData], E],
    seq_len: int,
    truncation: str = DROP,
    max_dropped: float = 1.0,
    name: Callable[[int], str] | None = None,
) -> tuple[list[E], RowsReport]:
    """Encodes a file's rows with a function of a `RowEncoder`; the segments of each fit `seq_len` tokens together.

    `name` says where a line comes from, if not from this file. Raises `RowError` for a broken row, an empty file, if
    no row is left, and if a larger share than `max_dropped` is dropped.
    """
    report = RowsReport(str(path))
    kept: list[E] = []
    for line, row in read_rows(path):
        place = f"{path}:{line}" if name is None else name(line)
        report.rows += 1
        try:
            encoded = encode_row(row, encode, place)
            fitted = fit(encoded, seq_len, truncation)
        except UnusableRow as reason:
            report.drop(place, str(reason), *_details(reason))
            continue
        report.truncated += fitted is not encoded
        report.keep(place)
        kept.append(fitted)
    report.require(max_dropped, TOO_MANY)
    return kept, report


TOO_MANY = "correct the rows, raise seq_len, or set truncation; or raise rows.max_dropped"


def encode_row[E: Encoded](row: RowData, encode: Callable[[RowData], E], place: str) -> E:
    """Encodes a row; raises `UnusableRow`, or `RowError` with its place for one that is broken."""
    try:
        return encode(row)
    except UnusableRow:
        raise
    except (RowError, ChatError, TokenizerError) as error:
        raise RowError(f"{place}: {error}") from None


class TooLong(UnusableRow):
    """A row that does not fit, of this many tokens."""

    def __init__(self, seq_len: int, length: int) -> None:
        super().__init__(f"longer than {seq_len} tokens")
        self.length = length


def _details(reason: UnusableRow) -> tuple[str, ...]:
    return (f" ({reason.length})",) if isinstance(reason, TooLong) else ()


def fit[E: Encoded](encoded: E, seq_len: int, truncation: str) -> E:
    """The row if its segments fit `seq_len` tokens together; else with the longest of them cut to one length, at their
    ends (`keep_start`) or their beginnings (`keep_end`), as TRL's `truncation_mode` does with each by itself.

    Raises `TooLong`, or `UnusableRow` if nothing to learn is left of a segment.
    """
    segments = segments_of(encoded)
    lengths = [len(segment.ids) for segment in segments]
    if sum(lengths) <= seq_len:
        return encoded
    if truncation == DROP:
        raise TooLong(seq_len, sum(lengths))
    most = common_length(lengths, seq_len)
    cut = tuple(_cut(segment, most, truncation) for segment in segments)
    if any(any(whole.loss_mask) and not any(part.loss_mask[1:]) for whole, part in zip(segments, cut, strict=True)):
        raise UnusableRow(f"nothing to learn is left in {seq_len} tokens ({truncation})")
    if isinstance(encoded, EncodedGroup) and len({tuple(part.ids) for part in cut}) < len(cut):
        raise UnusableRow(f"chosen and rejected are equal in {seq_len} tokens ({truncation})")
    if isinstance(encoded, EncodedGroup):
        return cast(E, replace(encoded, segments=cut))
    return cast(E, replace(encoded, ids=cut[0].ids) if isinstance(encoded, EncodedPrompt) else cut[0])


def common_length(lengths: Sequence[int], total: int) -> int:
    """The largest length to which the longest of `lengths` can be cut so that all sum to at most `total`."""
    left = total
    for number, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - number)
        if length > share:
            return share
        left -= length
    return max(lengths)


def _cut(segment: EncodedRow, most: int, truncation: str) -> EncodedRow:
    kept = slice(most) if truncation == KEEP_START else slice(max(0, len(segment.ids) - most), None)
    labels = None if segment.labels is None else segment.labels[kept]
    return EncodedRow(segment.ids[kept], segment.loss_mask[kept], labels)
