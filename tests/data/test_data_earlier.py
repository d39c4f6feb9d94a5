"""Against earlier corpora: what they have is removed and named, of theirs nothing is, and settings have to agree."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from document_tables import table_of
from duplicates import WORDS, joined, removed_of, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.artifact import Draft
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.config import DedupConfig
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.documents import document_files
from lifecycle.data.selecting.earlier import EarlierCorpus, earlier_corpora, signature_of
from lifecycle.data.selecting.signatures import write_signatures

BASE = WORDS[:200]


def corpus(folder: Path, kept: Sequence[str], heldout: Sequence[str] = ()) -> EarlierCorpus:
    """A corpus with these texts; those that are kept have the names f0, f1, ..."""
    folder.mkdir()
    for split, texts in (("kept", kept), ("heldout", heldout)):
        rows = signed(table_of(texts or ["none"], "old")).drop_columns("ordinal")
        with DocumentWriter(folder, split, rows.schema) as writer:
            writer.write(rows.slice(0, len(texts)))
    return EarlierCorpus(f"documents-{folder.name}", document_files(folder, "kept") + document_files(folder, "heldout"))


def signed_only(made: EarlierCorpus) -> EarlierCorpus:
    """The corpus without its texts."""
    folder = made.files[0].parent
    out = folder.with_name(f"{folder.name}-signatures")
    out.mkdir()
    assert write_signatures(folder, out, Silent()) == sum(pq.read_metadata(file).num_rows for file in made.files)
    files = document_files(out, "signatures")
    assert not any("text" in pq.read_schema(file).names for file in files)
    return EarlierCorpus(made.name, files)


def changed(*places: int) -> str:
    return " ".join("new" if at in places else word for at, word in enumerate(BASE))


@pytest.mark.parametrize("has_text", [True, False])
def test_what_earlier_corpora_have_is_removed_and_named(tmp_path: Path, has_text: bool) -> None:
    base, far = changed(), changed(20, 60, 90, 120, 150)
    earlier = [
        corpus(tmp_path / "one", [base, "a text of its own"], ["a text that is held out"]),
        corpus(tmp_path / "two", [base, "old alone", "old alone"]),
    ]
    if not has_text:
        earlier = [signed_only(made) for made in earlier]
    texts = ["new twice", base, "a text that is held out", "new twice", changed(20, 60), far, "a text that is new"]
    removed = removed_of(table_of(texts, "new"), tmp_path / "new", earlier=earlier, among=[0, 1, 2, 3, 4, 5])
    rows = {row["ordinal"]: (row["reason"], row["detail"]) for row in removed.to_pylist()}
    assert len(rows) == len(removed) and rows.keys() == {1, 2, 3, 4, 5}
    assert rows[1] == ("earlier_exact_duplicate", "same text as old:f0 of documents-one")
    assert rows[2] == ("earlier_exact_duplicate", "same text as old:f0 of documents-one")
    assert rows[3] == ("exact_duplicate", "same text as new:f0")
    assert rows[4][0] == rows[5][0] == "earlier_near_duplicate"
    assert rows[4][1].startswith("Jaccard 0.9") and rows[4][1].endswith(" of documents-one")
    # Of 196 word 5-grams a changed word changes five: with the earlier text it has 171 of 221 in common, which is too
    # few, and with the one between them 181 of 211.
    assert rows[5][1] == "Jaccard 0.858 with new:f4; kept of its group: old:f0 of documents-one"


@settings(max_examples=100)
@given(
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda e: e[0] < e[1]), max_size=20),
    st.permutations(range(10)),
)
def test_an_own_document_stays_if_nothing_leads_to_an_earlier_one(
    num_own: int, pairs: list[tuple[int, int]], order: list[int]
) -> None:
    groups = joined(10, num_own, [range(10)], lambda pair: 0.8 * (pair in pairs))
    ranks = [rank + 10 * (at < num_own) for at, rank in enumerate(order)]
    removed = {found.number: found.kept for found in groups.duplicates(np.array(ranks))}
    for own in range(num_own):
        group = reached(own, [pair for pair in pairs if pair[0] < num_own])
        best = min(group, key=ranks.__getitem__)
        assert removed.get(own, own) == best
    assert all(own < num_own for own in removed)


def reached(start: int, pairs: Sequence[tuple[int, int]]) -> set[int]:
    found, before = {start}, set[int]()
    while found != before:
        before = set(found)
        found |= {end for pair in pairs if found & {*pair} for end in pair}
    return found


def artifact(root: Path, stage: str, stats: dict) -> Path:
    draft = Draft(root, stage, {}, {})
    for split in ("kept", "heldout"):
        (draft.open() / f"{split}-00000.parquet").touch()
    return draft.commit(stats).path


def test_a_folder_that_cannot_be_compared_with_is_refused(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            earlier_corpora(DedupConfig(against=(str(folder),)))
        return str(caught.value)

    assert "no finished artifact here" in refused(tmp_path / "none") and "give the folder" in refused(tmp_path / "none")
    assert "made by stage tagging" in refused(artifact(tmp_path, "tagging", {}))
    assert "run its stage again" in refused(artifact(tmp_path / "old", "documents", {}))
    made = signature_of(DedupConfig())
    older = {"signature": made | {"functions": "others"}}
    assert "with other hash functions" in refused(artifact(tmp_path / "older", "documents", older))
    other = refused(artifact(tmp_path / "other", "documents", {"signature": made | {"rows": 6}}))
    assert "data.dedup.rows=6, this run's of data.dedup.rows=8" in other and "set data.dedup.rows=6 here" in other
    same = artifact(tmp_path / "same", "documents", {"signature": made})
    moved = same.rename(tmp_path / "moved")
    (found,) = earlier_corpora(DedupConfig(against=(str(moved),)))
    assert found.name == same.name and json.loads((moved / "manifest.json").read_text())["stage"] == "documents"
