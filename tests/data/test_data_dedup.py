"""Deduplication: recall and precision on made near-duplicates, and the same choice in any order and partitioning."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import at_addresses, table_of, verdicts
from duplicates import WORDS, joined, made_texts, named_in, removed_of, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.data.config import DedupConfig
from lifecycle.data.selecting.similarity import jaccard_similarity, shingles
from lifecycle.data.tagging.workers import call_alone


def true_pairs(texts: list[str], jaccard: float) -> set[tuple[int, int]]:
    sets = [shingles(text) for text in texts]
    return {
        (low, high)
        for low in range(len(texts))
        for high in range(low + 1, len(texts))
        if jaccard_similarity(sets[low], sets[high]) >= jaccard
    }


def test_finds_the_true_near_duplicates_and_no_other(tmp_path: Path) -> None:
    texts = made_texts(groups=60, copies=2)
    pairs = true_pairs(texts, 0.8)
    groups = joined(len(texts), len(texts), [range(len(texts)), *sorted(pairs)], lambda pair: float(pair in pairs))
    expected = {duplicate.number: duplicate.kept for duplicate in groups.duplicates(np.arange(len(texts)))}
    assert 60 < len(expected) < 120  # some copies are changed too much: the border runs through the examples
    config = DedupConfig(bands=21, rows=6)
    removed = removed_of(table_of(texts), tmp_path, config)
    assert set(removed["step"].to_pylist()) == {"near_duplicates"}
    found = dict(zip(removed["ordinal"].to_pylist(), named_in(removed["detail"]), strict=True))
    assert found.items() <= expected.items()
    assert len(found) >= 0.98 * len(expected)


@pytest.mark.slow
def test_order_and_workers_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_texts(groups=20, copies=2) + ["same text"] * 3
    one = removed_of(table_of(texts), tmp_path / "one")
    assert one["ordinal"].to_pylist()[:2] == [61, 62] and len(one) > 20
    monkeypatch.setattr("lifecycle.data.document_writer.ROW_GROUP", 10)  # six stretches
    monkeypatch.setattr("lifecycle.data.documents.PIECE", 2)
    assert removed_of(table_of(texts), tmp_path / "other", workers=2) == one
    backwards = removed_of(table_of(texts[::-1]), tmp_path / "backwards")
    groups = [
        _components(zip(found["ordinal"].to_pylist(), named_in(found["detail"]), strict=True))
        for found in (one, backwards)
    ]
    last = len(texts) - 1
    assert groups[0] == {frozenset(last - member for member in group) for group in groups[1]}


def _components(pairs: Iterable[tuple[int, int]]) -> set[frozenset[int]]:
    members: dict[int, set[int]] = {}
    for one, other in sorted(pairs):
        joined = members.get(one, {one}) | members.get(other, {other})
        members |= dict.fromkeys(joined, joined)
    return {frozenset(group) for group in members.values()}


def test_first_document_stays_and_the_reason_names_it(tmp_path: Path) -> None:
    base = " ".join(WORDS[:200])
    near = base.replace("word150", "changed")
    texts = [base, "something else entirely, and short", near, base, "something else entirely, and short"]
    documents = table_of(texts, "src")
    found = verdicts(documents, removed_of(documents, tmp_path))
    assert [v.step for v in found] == [None, None, "near_duplicates", "exact_duplicates", "exact_duplicates"]
    assert "src:f0" in (found[2].detail or "")
    assert [v.detail for v in found[3:]] == ["same text as src:f0", "same text as src:f1"]


def test_a_part_of_the_documents_is_compared_by_its_ordinals(tmp_path: Path) -> None:
    documents = table_of(["other text", "first text", "some text", "first text", "other text"])
    removed = removed_of(documents, tmp_path, among=range(1, 5))
    assert removed["ordinal"].to_pylist() == [3] and removed["detail"].to_pylist() == ["same text as s:f1"]


def test_documents_of_one_address_are_one_if_so_asked(tmp_path: Path) -> None:
    urls = ["https://www.example.org/a/", None, "http://example.org/a#top", "http://example.org/b", None]
    documents = at_addresses(table_of(["one", "two", "three", "three", "two"]), urls)
    removed = removed_of(documents, tmp_path / "asked", DedupConfig(addresses=True))
    # The third has left when the fourth is looked at, so its text stays.
    assert [*zip(removed["ordinal"].to_pylist(), removed["detail"].to_pylist(), strict=True)] == [
        (2, "same address as s:f0"), (4, "same text as s:f1"),
    ]  # fmt: skip
    assert removed_of(documents, tmp_path / "not")["ordinal"].to_pylist() == [4, 3]


def test_texts_without_words_are_not_alike(tmp_path: Path) -> None:
    assert not len(removed_of(table_of(["!!!\n", "???\n", "...\n"]), tmp_path))


def test_blocks_of_keys_find_what_one_block_finds(tmp_path: Path) -> None:
    rows = pa.table({"ordinal": range(200), "key": [number % 70 for number in range(199)] + [None]})
    rows = rows.cast(pa.schema([("ordinal", pa.int64()), ("key", pa.uint64())]))
    (tmp_path / "keys").mkdir()
    for first in (0, 90):
        pq.write_table(rows.slice(first, 90 if not first else 110), tmp_path / "keys" / f"{first}.parquet")
    links = []
    for rows_each, open_blocks in ((1000, 1), (30, 100), (30, 3)):  # 1 block; 7 in one pass, and in three
        call_alone(_links_in_blocks, tmp_path, rows_each, open_blocks)
        links.append(pq.read_table(tmp_path / "found.parquet"))
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["keys"]
    assert links[0] == links[1] == links[2] and len(links[0]) == 199 - 70
    assert links[0].slice(0, 2).to_pylist() == [{"first": 0, "ordinal": 70}, {"first": 0, "ordinal": 140}]


def _links_in_blocks(folder: Path, rows_each: int, open_blocks: int) -> None:
    from lifecycle.data.selecting import daft_adapter

    daft_adapter.write_links(folder / "keys", {"found": ("key",)}, folder, rows_each, open_blocks)


def test_settings_that_would_find_few_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"find 5% .*jaccard=0\.5.*choose bands=37, rows=3"):
        validate(DedupConfig, {"jaccard": 0.5})
    assert validate(DedupConfig, {"jaccard": 0.5, "bands": 37, "rows": 3}).bands == 37


@given(*[st.lists(st.sampled_from("abcdefgh"), min_size=at, max_size=40) for at in (1, 0)])
def test_similarity_of_shingles_is_that_of_sets_of_words(one: list[str], other: list[str]) -> None:
    sets = [{tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))} for words in (one, other)]
    sets[1] -= {()}
    found = jaccard_similarity(shingles(" ".join(one)), shingles(", ".join(other).upper()))
    assert found == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


def test_shingles_are_those_of_bare_letters() -> None:
    text = "Déjà vu at the café in Zürich, said one (2024)"
    wide = text.translate({code: code + 0xFEE0 for code in range(33, 127)})  # as Japanese fonts have them
    assert (shingles(text) == shingles("deja vu at the cafe in zurich said one 2024")).all()
    assert (shingles(text) == shingles(wide)).all()
    assert len(shingles("a_b c d e f")) == 1  # a name is one word


def test_signatures_agree_as_often_as_sets_do() -> None:
    chance = random.Random(0)
    pairs, agreeing, expected = 300, 0, 0.0
    for _ in range(pairs):
        words = chance.choices(WORDS, k=300)
        changed = [f"new{chance.random()}" if chance.random() < 0.02 else word for word in words]
        texts = [" ".join(words), " ".join(changed)]
        keys = np.array(signed(table_of(texts), DedupConfig(bands=64, rows=1))["bands"].to_pylist(), np.uint64)
        agreeing += int((keys[0] == keys[1]).sum())
        expected += jaccard_similarity(*map(shingles, texts))
    assert agreeing / (64 * pairs) == pytest.approx(expected / pairs, abs=0.01)  # a standard error of 0.003


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda e: e[0] < e[1]), max_size=25),
    st.permutations(range(13)),
    st.randoms(),
)
def test_groups_are_components_whatever_the_order_of_pairs(
    pairs: list[tuple[int, int]], ranks: list[int], chance: random.Random
) -> None:
    found = []
    for _ in range(2):
        groups = joined(13, 13, pairs, lambda pair: 0.8 + sum(pair) / 1000)
        found.append({(duplicate.number, duplicate.kept) for duplicate in groups.duplicates(np.array(ranks))})
        chance.shuffle(pairs)
    assert found[0] == found[1]
    groups = _components(pairs)
    assert groups == _components(found[0])
    assert found[0] == {
        (of, kept) for group in groups for kept in [min(group, key=ranks.__getitem__)] for of in group - {kept}
    }
