"""Lines of prose that are no text: a step that rewrites documents before they are measured. Off by default.

Removing lines changes a text, so it is part of tagging, and its settings are; what it did to each document is a column
for each rule. A document without any line left keeps all of them, and is removed with its text to be looked at.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.line_rules import C4_RULES, REFINEDWEB_RULES, LineRule, c4_rule, refinedweb_rule
from lifecycle.data.measures.quality_config import C4LinesConfig, RefinedWebLinesConfig
from lifecycle.data.measures.steps import BYTES_CUT, DocumentStep, Limit

_RULES = (*C4_RULES, *REFINEDWEB_RULES)
_MORE_EMPTY_LINES = re.compile(r"\n{3,}")


class Cleaned(NamedTuple):
    """A text, how many lines each rule changed, how many are left, and the share of its words that RefinedWeb's rules
    removed."""

    text: str
    changed: Counter[str]
    lines_left: int
    removed_words: float


@dataclass(frozen=True)
class CleanLines:
    """`text` without some lines, and how many lines each rule changed; `lines_left` of them and `removed_words`, the
    share of words that RefinedWeb's rules took; `bytes_cut`, of the text. Null for code and for other languages."""

    languages: tuple[str, ...]
    c4: C4LinesConfig | None
    refinedweb: RefinedWebLinesConfig | None
    columns: ClassVar[pa.Schema] = pa.schema([
        ("text", pa.string()), *((name, pa.int64()) for name in _RULES), ("lines_left", pa.int64()),
        ("removed_words", pa.float64()), (BYTES_CUT, pa.int64()),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a batch."""
        if self.c4 is None and self.refinedweb is None:
            nulls = [pa.nulls(batch.num_rows, kind) for kind in self.columns.types[1:]]
            return pa.record_batch([batch["text"], *nulls], schema=self.columns)
        cleaner = LineCleaner(self.c4, self.refinedweb)
        names = ("text", "format", "language")
        rows = [
            _row(cleaner.clean(text), text) if format != "code" and language in self.languages else {"text": text}
            for text, format, language in zip(*(batch[name].to_pylist() for name in names), strict=True)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.columns)


class LineCleaner:
    """Applies the rules of lines to texts. Empty lines are no lines: they stay between those that do."""

    def __init__(self, c4: C4LinesConfig | None, refinedweb: RefinedWebLinesConfig | None) -> None:
        self._c4 = c4_rule(c4) if c4 else None
        self._refinedweb = refinedweb_rule(refinedweb) if refinedweb else None

    def clean(self, text: str) -> Cleaned:
        """What is left of a normalised text; all of it if no line is left."""
        changed: Counter[str] = Counter()
        lines, removed_words = text.split("\n"), 0.0
        if self._refinedweb:
            lines = list(_left(lines, self._refinedweb, changed))
            num_words = len(text.split())
            removed_words = 1 - sum(len(line.split()) for line in lines) / num_words if num_words else 0.0
        if self._c4:
            lines = list(_left(lines, self._c4, changed))
        num_left = sum(not _is_blank(line) for line in lines)
        if changed and num_left:
            text = _MORE_EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip("\n") + "\n"
        return Cleaned(text, changed, num_left, removed_words)


def lines_step(config: DataConfig) -> DocumentStep:
    """The step `lines`."""
    of = config.lines
    step = CleanLines(of.languages, of.c4, of.refinedweb)
    if of.c4 is None and of.refinedweb is None:
        return DocumentStep("lines", step)
    rules = [Limit("no_line_left", "lines_left", "all lines go", low=1)]
    if of.max_removed_words is not None:
        detail = "{value:.1%} of the words > {high:.1%}"
        rules.append(Limit("removed_words", "removed_words", detail, high=of.max_removed_words))
    return DocumentStep("lines", step, tuple(rules), edits=(*_RULES, BYTES_CUT), settings="data.lines")


def _left(lines: Iterable[str], rule: LineRule, changed: Counter[str]) -> Iterator[str]:
    for line in lines:
        left, name = (line, "") if _is_blank(line) else rule(line)
        if name:
            changed[name] += 1
        if left is not None:
            yield left.rstrip() if name else left


def _is_blank(line: str) -> bool:
    return not line or line.isspace()


def _row(cleaned: Cleaned, text: str) -> dict[str, Any]:
    counts: dict[str, Any] = {name: cleaned.changed[name] for name in _RULES}
    counts[BYTES_CUT] = len(text.encode()) - len(cleaned.text.encode()) if cleaned.changed else 0
    return {"text": cleaned.text, **counts, "lines_left": cleaned.lines_left, "removed_words": cleaned.removed_words}
