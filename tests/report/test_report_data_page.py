"""The page on documents: what does not add up is said, and tables with many rows keep every document."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lifecycle.core.artifact import Artifact, Draft
from lifecycle.data.inspecting.breakdown import Breakdown
from lifecycle.data.selecting.contamination import Evidence
from lifecycle.ops.cost import PriceConfig
from lifecycle.report import data_page
from lifecycle.report.blocks import Paragraph, Table, Tile
from lifecycle.report.data_page import cut_tile, estimated_tokens, faults_of, kinds_tables, split_tiles, token_tiles
from lifecycle.report.data_page_costs import REST, steps_table
from lifecycle.report.data_page_evidence import classifiers_table, contamination_section
from lifecycle.report.data_section import funnel_table


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
    lines, passages = cut_tile([{"edits": {"c4_few_words": 4, "bytes_cut": 70}}, *steps])
    assert lines == Tile("cut", "70 bytes", "of lines, out of all documents") and passages == tile


def test_a_table_with_too_many_rows_adds_the_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_page, "MOST", 2)
    amounts = broken_down(*("kept", "quality", "heldout", "kept", "kept") * 4, sources=5)
    source, _, language = kinds_tables(amounts, ["quality"], has_tokens=True)
    assert source.columns[:3] == ("source", "documents", "text") and source.columns[7:9] == (
        "tokens read (estimate)",
        "tokens kept and held out",
    )
    assert [row[0] for row in source.rows] == ["s0", "s1", "3 others"]
    assert [row[1] for row in source.rows] == ["4", "4", "12"]
    assert source.rows[2][3:] == ("8", "80 bytes", "66.7 %", "4", "36", "36", "")
    assert language.rows == (("none", "20", "200 bytes", "12", "120 bytes", "60.0 %", "4", "60", "60", "4"),)


def test_tokens_of_removed_documents_are_estimated_by_those_of_their_source() -> None:
    """Kept: 1 token a byte in source a, 1/4 in b; nothing of c is kept: as all kept text, 20 tokens of 50 bytes."""
    amounts = Breakdown(())
    documents = [
        ("a", "kept", 10, 10), ("b", "kept", 40, 10), ("b", "heldout", 20, 3),
        ("a", "quality", 100, 0), ("b", "quality", 80, 0), ("c", "near_duplicates", 50, 0),
    ]  # fmt: skip
    for source, outcome, num_bytes, tokens in documents:
        kinds = {"source": [source], "license": ["MIT"], "language": ["en"], "text_bytes": [num_bytes]}
        amounts.add(pa.record_batch(kinds), pa.array([outcome]), np.array([tokens]))
    assert amounts.tokens_by(lambda cell: cell.source) == pytest.approx({"a": 110, "b": 33, "c": 20})
    sizes = {"read": 300, "quality": 120, "near_duplicates": 70, "heldout_split": 50, "decontamination": 25}
    steps = [{"step": name, "bytes_in": 0, "bytes_out": size} for name, size in sizes.items()]
    found = estimated_tokens(steps, amounts)
    assert found == pytest.approx([163, 43, 23, 20, 10])  # half of the last text was cut
    rows = [step | {"documents_in": 9, "documents_out": 9, "reasons": {}, "edits": {}} for step in steps]
    table = funnel_table([rows[0] | {"files_in": 4}, *rows[1:]], found)
    at = table.columns.index("tokens in (estimate)")
    assert [row[at : at + 2] for row in table.rows][:2] == [("", "163"), ("163", "43")]


def test_a_classifier_has_what_it_was_worth_on_held_out_examples() -> None:
    heldout = {"documents": 1200, "bad": 37, "auc": 0.98765, "f1": 0.9, "precision": 0.8, "recall": 1.0}
    (table,) = classifiers_table({"spam": {"good": 5, "heldout": heldout | {"calibration_error": 0.01}}})
    assert table.columns[3] == "AUC" and table.rows == (
        ("spam", "1,200", "37", "0.9877", "0.9000", "0.8000", "1.0000", "0.0100"),
    )
    assert not list(classifiers_table({}))


def made(folder: Path, stage: str, cpu_s: float, **steps: tuple[float | None, int]) -> Artifact:
    """An artifact whose steps took so many core-seconds for so many bytes."""
    how = {"steps": {name: {"cpu_s": spent, "bytes": num_bytes} for name, (spent, num_bytes) in steps.items()}}
    draft = Draft(folder, stage, {}, {})
    draft.open()
    artifact = draft.commit({}, how=[how] if steps else [])
    return Artifact(artifact.path, artifact.manifest.model_copy(update={"cpu_s": cpu_s}))


def test_each_step_has_its_speed_share_and_cost_of_what_it_was_given(tmp_path: Path) -> None:
    tagging = made(tmp_path, "tagging", 10.0, read=(2.0, 8_000_000), join_partitions=(5.0, 20_000_000))
    documents = made(tmp_path, "documents", 4.0, rules=(0.001, 6_000_000), near_duplicates=(None, 6_000_000))
    table, said = steps_table((tagging, documents), PriceConfig(core_hour=3.6, currency="EUR"))
    assert isinstance(table, Table) and isinstance(said, Paragraph) and REST in said.text
    assert table.rows == (
        ("tagging", "read", "8.00 MB", "20.0 %", "2.00", "4.00", "0.002000 EUR", "0.250000 EUR"),
        ("tagging", "join partitions", "20.0 MB", "50.0 %", "5.00", "4.00", "0.005000 EUR", "0.250000 EUR"),
        ("tagging", REST, "", "30.0 %", "3.00", "", "0.003000 EUR", ""),
        ("documents", "rules", "6.00 MB", "0.0 %", "0.00", "", "0.000001 EUR", ""),  # too short for a speed
        ("documents", "near duplicates", "6.00 MB", "", "", "", "", ""),  # not known, so neither is the rest
    )
    assert not list(steps_table((made(tmp_path, "other", 4.0),), PriceConfig()))


def test_the_tiles_are_of_this_corpus() -> None:
    amounts = broken_down("kept", "kept", "heldout", "quality", "near_duplicates")
    assert [(tile.name, tile.value) for tile in (*split_tiles(amounts, 50), *token_tiles(amounts))] == [
        ("kept", "2"), ("held out", "1"), ("removed", "2"), ("tokens, train", "6"), ("tokens, heldout", "3"),
    ]  # fmt: skip
    assert [tile.value for tile in token_tiles(broken_down("quality"))] == ["0", "0"]
