"""The page on documents: what does not add up is said, and tables with many rows keep every document."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lifecycle.data.inspecting.breakdown import Breakdown
from lifecycle.report import data_page
from lifecycle.report.data_page import faults_of, kinds_tables


def broken_down(*outcomes: str, sources: int = 1) -> Breakdown:
    """Documents of 10 bytes with these outcomes."""
    amounts, n = Breakdown(("pii_email",)), len(outcomes)
    rows = pa.record_batch({
        "source": [f"s{i % sources}" for i in range(n)], "license": ["MIT"] * n, "text_bytes": [10] * n,
        "language": pa.array([None] * n, pa.string()), "pii_email": pa.array([None] * n, pa.int64()),
    })  # fmt: skip
    amounts.add(rows, pa.array(outcomes), np.full(n, 3))
    return amounts


def step(name: str, before: int, after: int, **reasons: int) -> dict[str, Any]:
    return {"step": name, "documents_in": before, "documents_out": after, "reasons": reasons}


STEPS = [{"step": "read", "documents_out": 5}, step("quality", 5, 3, short=2), step("heldout_split", 3, 2, held_out=1)]
OUTCOMES = ("kept", "kept", "heldout", "quality", "quality")


def test_a_funnel_that_adds_up_has_no_faults() -> None:
    assert not list(faults_of(STEPS, broken_down(*OUTCOMES)))


@pytest.mark.parametrize(
    ("steps", "outcomes", "said"),
    [
        (STEPS, OUTCOMES[:4], "5 documents were read, 4 are in the files"),
        (STEPS, (*OUTCOMES[:4], "language"), "came to step quality; it counts 5, and 2 that left: 1 are in the files"),
        ([*STEPS[:2], step("heldout_split", 2, 1, held_out=1)], OUTCOMES, "3 documents came to step heldout_split"),
    ],
)
def test_documents_that_vanish_are_told(steps: list[dict[str, Any]], outcomes: tuple[str, ...], said: str) -> None:
    assert any(said in fault for fault in faults_of(steps, broken_down(*outcomes)))


def test_a_table_with_too_many_rows_adds_the_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_page, "MOST", 2)
    amounts = broken_down(*("kept", "quality", "heldout", "kept", "kept") * 4, sources=5)
    source, _, language = kinds_tables(amounts, ["quality"], has_tokens=True)
    assert source.columns[:3] == ("source", "documents", "text") and "tokens" in source.columns
    assert [row[0] for row in source.rows] == ["s0", "s1", "3 others"]
    assert [row[1] for row in source.rows] == ["4", "4", "12"]
    assert source.rows[2][3:] == ("8", "80 bytes", "66.7 %", "4", "36", "")
    assert language.rows == (("none", "20", "200 bytes", "12", "120 bytes", "60.0 %", "4", "60", "4"),)
