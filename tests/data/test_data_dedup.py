"""Deduplication: recall and precision on made near-duplicates, and the same choice in any order and partitioning."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import table_of, verdicts
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.data.dedup import Duplicates, deduplicate, find_duplicates
from lifecycle.data.similarity import MIN_RECALL, NUM_HASHES, bands_for, group_pairs, jaccard_similarity, shingles
from lifecycle.data.workers import call_alone

WORDS = [f"word{number}" for number in range(3000)]


def made_texts(groups: int, copies: int, seed: int = 0) -> list[str]:
    """`groups` random texts of 200 words, each with `copies` in which one to seven words are replaced."""
    chance = random.Random(seed)
    texts = []
    for _ in range(groups):
        base = chance.choices(WORDS, k=200)
        texts.append(" ".join(base))
        for _ in range(copies):
            changed = set(chance.sample(range(200), chance.randint(1, 7)))
            texts.append(" ".join(f"new{chance.random()}" if at in changed else w for at, w in enumerate(base)))
    return texts


def true_pairs(texts: list[str], jaccard: float) -> set[tuple[int, int]]:
    sets = [shingles(text) for text in texts]
    return {
        (low, high)
        for low in range(len(texts))
        for high in range(low + 1, len(texts))
        if jaccard_similarity(sets[low], sets[high]) >= jaccard
    }


def found_in(folder: Path, texts: list[str], order: list[int], files: int) -> Duplicates:
    """What is found when the texts lie in this order in so many files."""
    folder.mkdir()
    for number in range(files):
        part = order[number::files]
        table = pa.table({"ordinal": part, "text": pa.array([texts[at] for at in part], pa.large_string())})
        pq.write_table(table, folder / f"{number}.parquet")
    return call_alone(find_duplicates, folder, 0.8)


def test_finds_the_true_near_duplicates_and_no_other(tmp_path: Path) -> None:
    texts = made_texts(groups=60, copies=2)
    pairs = true_pairs(texts, 0.8)
    expected = {n.ordinal: n.first for n in group_pairs([(low, high, 0.8) for low, high in pairs])}
    assert 60 < len(expected) < 120  # some copies are changed too much: the border runs through the examples
    found = found_in(tmp_path / "one", texts, list(range(len(texts))), 1)
    assert not found.exact
    assert {near.ordinal: near.first for near in found.near}.items() <= expected.items()
    assert len(found.near) >= 0.98 * len(expected)
    assert found.num_candidates < 300  # the bands are selective: 16,110 pairs are possible


def test_order_and_files_do_not_matter(tmp_path: Path) -> None:
    texts = made_texts(groups=20, copies=2) + ["same text"] * 3
    order = list(range(len(texts)))
    one = found_in(tmp_path / "one", texts, order, 1)
    assert one.exact == [(61, 60), (62, 60)]
    assert len(one.near) > 20
    assert found_in(tmp_path / "other", texts, random.Random(1).sample(order, len(order)), 4) == one


def test_first_document_stays_and_the_reason_names_it() -> None:
    base = " ".join(WORDS[:200])
    near = base.replace("word150", "changed")
    texts = [base, "something else entirely, and short", near, base, "something else entirely, and short"]
    documents = table_of(texts, "src")
    found = verdicts(documents, deduplicate(documents, 0.8))
    assert [v.step for v in found] == [None, None, "near_duplicates", "exact_duplicates", "exact_duplicates"]
    assert "src:f0" in (found[2].detail or "")
    assert [v.detail for v in found[3:]] == ["same text as src:f0", "same text as src:f1"]


def test_a_part_of_the_documents_is_compared_by_its_ordinals() -> None:
    documents = table_of(["other text", "first text", "some text", "first text", "other text"]).slice(1)
    removed = deduplicate(documents, 0.8)
    assert removed["ordinal"].to_pylist() == [3] and removed["detail"].to_pylist() == ["same text as s:f1"]


def test_texts_without_words_are_not_alike() -> None:
    assert not len(deduplicate(table_of(["!!!\n", "???\n", "...\n"]), 0.8))


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_keep_the_promised_recall(jaccard: float) -> None:
    bands, rows = bands_for(jaccard)
    assert bands * rows <= NUM_HASHES
    assert 1 - (1 - jaccard**rows) ** bands >= MIN_RECALL


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda e: e[0] < e[1]), max_size=25), st.randoms()
)
def test_groups_are_components_whatever_the_order_of_edges(edges: list[tuple[int, int]], chance: random.Random) -> None:
    scored = [(low, high, 0.8 + (low + high) / 1000) for low, high in set(edges)]
    found = group_pairs(sorted(scored))
    chance.shuffle(scored)
    assert group_pairs(scored) == found
    # Independent check: transitive closure by matrix powers.
    near = np.eye(13, dtype=bool)
    for low, high in edges:
        near[low, high] = near[high, low] = True
    for _ in range(4):
        near = near @ near
    assert {d.ordinal: d.first for d in found} == {n: int(near[n].argmax()) for n in range(13) if near[n].argmax() < n}
