"""A survey of documents: every one counted once, every reason, samples, groups of duplicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from document_tables import data_config
from selected_folders import document, write_folder

from lifecycle.core.progress import Silent
from lifecycle.data.inspecting.breakdown import ReasonCount
from lifecycle.data.inspecting.distributions import scores_of
from lifecycle.data.inspecting.evidence import MEMBERS, Group
from lifecycle.data.inspecting.survey import SAMPLES, Survey, survey, token_counts
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.personal.pii import pii_step
from lifecycle.report.blocks import Table
from lifecycle.report.data_page_evidence import edits_section

SHORT = ("quality", "short", "1 words < 2")
RARE = ("quality", "rare", "0.1 < 0.5")
STAYS = "a:kept text 0.txt"
KEPT = [document(f"kept text {n}", source="ab"[n % 2], pii_email=n % 3, word_count=3 + n) for n in range(30)]
REMOVED = [
    *(document(f"short{n}", SHORT, language="fr") for n in range(25)),
    document("both", SHORT, SHORT, RARE), document("rare text", RARE, license=None),
    *(document(f"copy {n}", ("exact_duplicates", "exact_duplicate", f"same text as {STAYS}")) for n in range(7)),
    document("like", ("near_duplicates", "near_duplicate", f"Jaccard 0.9 with a:copy; kept of its group: {STAYS}")),
    document("near", ("near_duplicates", "near_duplicate", "Jaccard 0.8 with b:x; y.txt")),
    document("leak", ("decontamination", "eval_overlap", "0.75 of the n-grams with mmlu.jsonl:12")),
    document("leak too", ("decontamination", "eval_overlap", "0.60 of the n-grams with mmlu.jsonl:12")),
    document("leaks", ("decontamination", "heldout_overlap", "0.60 of the n-grams with b:held.txt")),
]  # fmt: skip
ROWS = [*KEPT, document("held out", split="heldout"), *REMOVED]
RULES = (Limit("short", "word_count", "", low=2), Limit("rare", "share", "", low=0.5))
STEPS = (DocumentStep("quality", None, RULES), DocumentStep("pii", None, edits=("pii_email",)))  # pyrefly: ignore[bad-argument-type] - not run


def surveyed(folder: Path, seed: int = 0, steps: Sequence[DocumentStep] = STEPS, **tokens: list[int]) -> Survey:
    counts = {split: np.array(numbers, np.int32) for split, numbers in tokens.items()}
    return survey(folder, steps, scores_of(steps), counts, seed, Silent())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("artifact") / "documents", ROWS)


@pytest.fixture(scope="module")
def found(folder: Path) -> Survey:
    return surveyed(folder, kept=list(range(30)))


def test_every_document_is_counted_once_by_any_column(found: Survey) -> None:
    by_source = found.breakdown.by(lambda cell: cell.source)
    assert sum(int(of[0]) for of in by_source.values()) == len(ROWS)
    assert sum(int(of[1]) for of in by_source.values()) == sum(row["text_bytes"] for row in ROWS)
    assert by_source["a"][:3].tolist() == [15, sum(len(row["text"]) for row in KEPT[::2]), sum(range(0, 30, 2))]
    outcomes = {name: int(of[0]) for name, of in found.breakdown.by(lambda cell: cell.outcome).items()}
    expected = Counter(row["step"] or row["split"] for row in ROWS)
    assert outcomes == expected
    assert found.breakdown.by(lambda cell: cell.license).keys() == {"CC0", ""}
    kept = found.breakdown.by(lambda cell: cell.outcome)["kept"]
    assert found.breakdown.of_edits("pii_email", kept) == (30, 20)


def test_tokens_of_a_corpus_are_behind_those_of_the_corpora_before_it(folder: Path, tmp_path: Path) -> None:
    for name, lengths in (("train", [*[7] * 30, 1, 2]), ("heldout", [7, 3])):  # `folder` has 30 and 1
        np.save(tmp_path / f"{name}.counts.npy", np.array(lengths, np.int32))
    own, first = token_counts(tmp_path, [folder]), token_counts(tmp_path)
    assert (own["kept"].tolist(), own["heldout"].tolist()) == ([1, 2], [3])
    assert len(first["kept"]) == 32 and first["kept"][0] == 7


@pytest.mark.parametrize(("keep", "said"), [([], "Edits by pii"), (["email"], "Found and left by pii")])
def test_personal_data_is_counted_where_it_is_left_in_the_text_too(folder: Path, keep: list[str], said: str) -> None:
    step = pii_step(data_config(pii={"keep": keep}))
    step = replace(step, edits=("pii_email",) * (not keep))  # the columns that the documents have
    tables = [block for block in edits_section(surveyed(folder, steps=(step,))).blocks if isinstance(block, Table)]
    assert [table.caption for table in tables] == [f"{said}: number (documents)", f"{said}, by source"]
    assert tables[0].rows[0][:2] == ("pii_email", "30 (20)")


def test_reasons_are_counted_as_first_as_one_and_as_the_only_one(found: Survey) -> None:
    assert found.reasons.counts["quality", "short"] == ReasonCount(first=26, any=26, only=25)
    assert found.reasons.counts["quality", "rare"] == ReasonCount(first=1, any=2, only=1)


def test_samples_are_of_every_reason_and_the_same_ones_again(folder: Path, found: Survey) -> None:
    drawn = found.drawn(("quality", "short"))
    assert len(drawn) == SAMPLES == len({one.sample.id for one in drawn})
    assert {one.why for one in drawn} == {SHORT[2]}
    assert {one.sample.text: one.why for one in found.drawn(("quality", "rare"))} == {
        "both": RARE[2],
        "rare text": RARE[2],
    }
    assert [one.sample.text for one in found.drawn("heldout")] == ["held out"]
    again, other = surveyed(folder), surveyed(folder, seed=1)
    assert again.drawn("kept") == found.drawn("kept") != other.drawn("kept")


def test_samples_do_not_depend_on_files_and_row_groups(found: Survey, tmp_path: Path) -> None:
    other = surveyed(write_folder(tmp_path / "documents", ROWS, per_group=7, per_file=100))
    for group in ("kept", ("quality", "short"), found.distributions[0].score):
        assert [one.sample for one in found.drawn(group)] == [one.sample for one in other.drawn(group)]


def test_kept_documents_nearest_to_a_limit_come_first(found: Survey) -> None:
    (words,) = found.distributions  # no document has a share
    assert words.num_below == sum(row["word_count"] < 2 for row in ROWS)
    assert [one.why for one in found.drawn(words.score)[:2]] == ["word_count 3"]  # 4 is as far from 2 as 0 is


def test_duplicates_are_grouped_by_the_document_that_stays(found: Survey) -> None:
    assert found.duplicates.sizes() == {1: 1, 8: 1}
    large, small = found.largest_groups()
    assert large == Group(STAYS, 8, tuple(f"s:copy {n}.txt" for n in range(MEMBERS)))
    assert small == Group("b:x; y.txt", 1, ("s:near.txt (Jaccard 0.8)",))


def test_nothing_removed_and_nothing_kept_are_no_errors(tmp_path: Path) -> None:
    empty = surveyed(write_folder(tmp_path / "documents", []))
    assert not empty.largest_groups() and not empty.drawn("kept") and not empty.distributions
