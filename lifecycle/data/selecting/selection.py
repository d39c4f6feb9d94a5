"""Selection: which documents are removed, by which step, and for which reasons.

Removals are a table that grows step by step; documents are never changed. Every step that removes, whether it applies
thresholds to columns or compares documents with each other, yields rows of `REMOVALS`. The first step that removes a
document counts in the funnel, and every reason is kept.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.measures.steps import DocumentStep, Failure, MapStep, run_steps

# `ordinal` is a document's position in the order of the sources.
REMOVALS = pa.schema([
    ("ordinal", pa.int64()), ("step", pa.string()), ("reason", pa.string()), ("detail", pa.string()),
])  # fmt: skip
_REASON = pa.struct([("step", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# The columns on a document's removal; all null if it is not removed.
VERDICT = pa.schema([
    ("step", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("reasons", pa.list_(_REASON)),
])  # fmt: skip


def select(documents: pa.Table, steps: Sequence[DocumentStep]) -> pa.Table:
    """Applies the rules of all steps to the columns of all documents; returns every removal, in the order of the rules.

    Pure: the table and the thresholds of the rules decide, and a document's removals do not depend on other documents.
    """
    return _table((step.name, failure) for step in steps for rule in step.rules for failure in rule(documents))


def joined(documents: pa.Table, steps: Sequence[MapStep]) -> pa.Table:
    """The documents with the columns of steps that are measured only now."""
    return pa.Table.from_batches([run_steps(batch, steps) for batch in documents.to_batches()]) if steps else documents


def removals(step: str, failures: Iterable[Failure]) -> pa.Table:
    """The removals of one step."""
    return _table((step, failure) for failure in failures)


def _table(failures: Iterable[tuple[str, Failure]]) -> pa.Table:
    return pa.Table.from_pylist([{"step": step, **failure._asdict()} for step, failure in failures], schema=REMOVALS)


def remaining(documents: pa.Table, removed: pa.Table) -> pa.Table:
    """The documents that no removal names, in their order."""
    return documents.filter(~_is_in(documents, removed))


def removals_within(removed: pa.Table, first: int, end: int) -> pa.Table:
    """The removals of the documents with these ordinals; `removed` is sorted by ordinal."""
    low, high = np.searchsorted(removed["ordinal"].to_numpy(), [first, end])
    return removed.slice(low, high - low)


def removed_documents(documents: pa.Table, removed: pa.Table) -> pa.Table:
    """The documents that removals name, in their order, with the columns of `VERDICT`.

    `step` and `reason` are those of the first removal, `detail` joins the details of that step, and `reasons` has an
    entry for every removal.
    """
    rows = zip(removed["ordinal"].to_pylist(), removed.select(_REASON.names).to_pylist(), strict=True)
    by_document = groupby(sorted(rows, key=itemgetter(0)), key=itemgetter(0))  # stable: reasons keep their order
    verdicts = pa.Table.from_pylist([_verdict(list(group)) for _, group in by_document], schema=VERDICT)
    return _joined(documents.filter(_is_in(documents, removed)), verdicts)


def kept_documents(documents: pa.Table) -> pa.Table:
    """Documents that are not removed, with the columns of `VERDICT`, all null."""
    return _joined(documents, pa.table([pa.nulls(len(documents), kind) for kind in VERDICT.types], VERDICT))


def _verdict(removals: list[tuple[int, dict[str, str]]]) -> dict[str, Any]:
    reasons = [reason for _, reason in removals]
    first = reasons[0]
    detail = "; ".join(entry["detail"] for entry in reasons if entry["step"] == first["step"])
    return {"step": first["step"], "reason": first["reason"], "detail": detail, "reasons": reasons}


def _is_in(documents: pa.Table, removed: pa.Table) -> NDArray[np.bool_]:
    return np.isin(documents["ordinal"].to_numpy(), removed["ordinal"].to_numpy())


def _joined(documents: pa.Table, verdicts: pa.Table) -> pa.Table:
    return pa.table(documents.columns + verdicts.columns, pa.schema([*documents.schema, *verdicts.schema]))
