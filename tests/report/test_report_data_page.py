"""The page on documents: what does not add up is said, and tables with many rows keep every document."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lifecycle.data.inspecting.breakdown import Breakdown
from lifecycle.data.selecting.contamination import Evidence
from lifecycle.report import data_page
from lifecycle.report.blocks import Paragraph, Table
from lifecycle.report.data_page import cut_tile, faults_of, kinds_tables
from lifecycle.report.data_page_evidence import classifiers_table, contamination_section


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


def test_what_was_found_of_tasks_and_of_held_out_documents_is_apart() -> None:
    counts = {"rows": 9, "compared": 8, "found": 2, "left": 0, "documents": 3}
    stats = {"items_too_short_to_compare": 4, "contamination": {"tasks": {"quiz": counts}, "heldout": counts}}
    evidence: dict[tuple[str | None, str], Evidence] = {
        ("quiz", "quiz.jsonl:7"): Evidence({"removed": 1, "cut": 1}, "s:a.txt", 0.75, "what is the"),
        (None, "s:h"): Evidence({"removed": 1}, "s:b", 1, "x"),
    }  # fmt: skip
    said, tasks, heldout, rows = contamination_section(stats, evidence).blocks
    assert isinstance(said, Paragraph) and "4 texts" in said.text
    assert isinstance(tasks, Table) and tasks.rows == (("quiz", "9", "8", "2", "3", "0"),)
    assert isinstance(heldout, Table) and heldout.rows == (("s:h", "1", "removed 1", "s:b", "100.0 %", "x"),)
    assert isinstance(rows, Table) and rows.caption == "Rows of quiz found in training documents: 1"
    assert rows.rows == (("quiz.jsonl:7", "2", "removed 1, cut 1", "s:a.txt", "75.0 %", "what is the"),)
    nothing = stats | {"contamination": {"tasks": {}, "heldout": counts}}
    assert [type(block) for block in contamination_section(nothing, {}).blocks] == [Paragraph, Paragraph]


def test_what_was_cut_has_a_tile() -> None:
    steps = [
        {"edits": {}},
        {"edits": {"passages_cut": 3, "bytes_cut": 50}},
        {"edits": {"passages_cut": 1, "bytes_cut": 9}},
    ]
    (tile,) = cut_tile(steps)
    assert (tile.name, tile.value) == ("cut", "4") and "59 bytes" in tile.remark
    assert not list(cut_tile(steps[:1]))


def test_a_table_with_too_many_rows_adds_the_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_page, "MOST", 2)
    amounts = broken_down(*("kept", "quality", "heldout", "kept", "kept") * 4, sources=5)
    source, _, language = kinds_tables(amounts, ["quality"], has_tokens=True)
    assert source.columns[:3] == ("source", "documents", "text") and "tokens" in source.columns
    assert [row[0] for row in source.rows] == ["s0", "s1", "3 others"]
    assert [row[1] for row in source.rows] == ["4", "4", "12"]
    assert source.rows[2][3:] == ("8", "80 bytes", "66.7 %", "4", "36", "")
    assert language.rows == (("none", "20", "200 bytes", "12", "120 bytes", "60.0 %", "4", "60", "4"),)


def test_a_classifier_has_what_it_was_worth_on_held_out_examples() -> None:
    heldout = {"documents": 1200, "bad": 37, "auc": 0.98765, "f1": 0.9, "precision": 0.8, "recall": 1.0}
    (table,) = classifiers_table({"spam": {"good": 5, "heldout": heldout | {"calibration_error": 0.01}}})
    assert table.columns[3] == "AUC" and table.rows == (
        ("spam", "1,200", "37", "0.9877", "0.9000", "0.8000", "1.0000", "0.0100"),
    )
    assert not list(classifiers_table({}))
