"""The interface of a document step: measurements as columns, and rules over those columns.

A step measures first and decides later. Its `MapStep` is a function from an Arrow batch of documents to columns and
runs in worker processes while the sources are read. Its rules are applied later to the finished columns
(`selection.py`), so a new threshold does not read the sources again.
What must hold: a document's columns depend only on that document and on the step's own fields. Any batch size,
partitioning or number of workers then gives the same columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BYTES_CUT = "bytes_cut"  # the edits of a step that takes something out of texts: of each, how much


class MapStep(Protocol):
    """Measures or rewrites the documents of a batch. A step is a frozen dataclass; its fields are its settings.

    `columns` is the schema of the columns that it adds or replaces. The call returns exactly these columns, one row for
    each document of the batch; null means that a measure does not apply to a document.
    """

    columns: ClassVar[pa.Schema]

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a batch."""
        ...


class Failure(NamedTuple):
    """A document that fails a rule: its `ordinal`, the reason that the funnel counts, and the evidence."""

    ordinal: int
    reason: str
    detail: str


# A rule reads columns of a table of documents, `ordinal` among them, and yields those that fail it.
type Rule = Callable[[pa.Table], Iterator[Failure]]


@dataclass(frozen=True)
class DocumentStep:
    """A step of the pipeline. `edits` are its columns that count changes to the text, `left` those that count what it
    was told to leave there.

    `settings` names the settings to change if the step removes too much. A step that `is_joined` is measured when
    documents are selected, not when they are tagged: its columns come from a file and not from the text.
    """

    name: str
    measure: MapStep
    rules: tuple[Rule, ...] = ()
    edits: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    settings: str = ""
    is_joined: bool = False


@dataclass(frozen=True)
class Limit:
    """A rule: documents whose `column` is outside [low, high] fail; null passes.

    `detail` is a format string of `{column}`, `{value}`, `{low}` and `{high}`. With `language`, the rule applies
    to documents in that language only, with `not_in` to those in other languages than these.
    """

    reason: str
    column: str
    detail: str
    low: float = -math.inf
    high: float = math.inf
    language: str | None = None
    not_in: tuple[str, ...] = ()

    def __call__(self, documents: pa.Table) -> Iterator[Failure]:
        """The documents with a value outside the bounds."""
        values = documents[self.column].to_numpy()  # null is NaN, which is neither below nor above
        fails = (values < self.low) | (values > self.high)
        if self.language is not None or self.not_in:
            fails &= are_in(documents["language"], self.language, self.not_in)
        failing = documents.select(["ordinal", self.column]).filter(fails)
        for ordinal, value in zip(*failing.to_pydict().values(), strict=True):
            detail = self.detail.format(column=self.column, value=value, low=self.low, high=self.high)
            yield Failure(ordinal, self.reason, detail)


def are_in(languages: pa.Array | pa.ChunkedArray, language: str | None, not_in: Sequence[str]) -> NDArray[np.bool_]:
    """Which documents are in a language, None for any, and in none of `not_in`."""
    found = np.ones(len(languages), bool)
    if language is not None:  # Arrow compares a million in 10 ms, NumPy their objects in 55
        found &= pc.call_function("equal", [languages, language]).to_numpy(zero_copy_only=False)
    if not_in:
        others = pc.SetLookupOptions(pa.array(not_in))
        found &= ~pc.call_function("is_in", [languages], others).to_numpy(zero_copy_only=False)
    return found


def schema_after(schema: pa.Schema, steps: Sequence[MapStep]) -> pa.Schema:
    """The columns of a batch with these ones once all steps have run."""
    for column in chain.from_iterable(step.columns for step in steps):
        at = schema.get_field_index(column.name)
        schema = schema.append(column) if at < 0 else schema.set(at, column)
    return schema


def run_steps(batch: pa.RecordBatch, steps: Sequence[MapStep]) -> pa.RecordBatch:
    """The batch with the columns of all steps; each step sees those of the steps before it."""
    for step in steps:
        added = step(batch)
        assert added.schema.equals(step.columns) and added.num_rows == batch.num_rows, type(step).__name__
        for name, column in zip(added.schema.names, added.columns, strict=True):
            at = batch.schema.get_field_index(name)
            batch = batch.append_column(name, column) if at < 0 else batch.set_column(at, name, column)
    return batch
