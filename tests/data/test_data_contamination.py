"""Hits of test items: every one is written, counted for its task, and shown with the words in common."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_decontaminate import prose, removals

from lifecycle.data.ngrams import bare_characters, ngram_hashes, word_hashes
from lifecycle.data.selecting import contamination as contaminated
from lifecycle.data.selecting.contamination import (
    EXCERPT_CHARS,
    Evidence,
    contamination,
    evidence_of,
    longest_common,
    note_cuts,
)
from lifecycle.data.selecting.contamination import read_hits as batches
from lifecycle.data.selecting.eval_items import TestItem, task_items


def written(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": text, "answer": 3}) + "\n" for text in texts))
    return path


def read_hits(folder: Path, *more: str) -> list[dict]:
    names = ["task", "item", "ordinal", "document", "share", *more]
    return [row for batch in batches(folder, names) for row in batch.to_pylist()]


def test_every_hit_is_written_and_counted_for_its_tasks(tmp_path: Path) -> None:
    both = written(tmp_path / "both.jsonl", prose(1, 40), prose(2, 30), "a short one", prose(3, 30))
    own = written(tmp_path / "own.jsonl", prose(4, 40))
    held = TestItem("s:held", "heldout_overlap", prose(5, 60))
    items = [held, TestItem("s:other", "heldout_overlap", prose(6, 60)), *task_items({"a": [both], "b": [both, own]})]
    texts = [
        prose(10, 300), f"{prose(11, 60)} {prose(1, 40)} {prose(2, 30)}", f"{prose(1, 40)} {prose(12, 90)}",
        f"{prose(4, 40)} {prose(13, 50)} {prose(5, 60)}",
    ]  # fmt: skip
    out = tmp_path / "out"
    removed, num_short = removals(texts, items, out)
    assert removed["ordinal"].to_pylist() == [1, 2, 3] and num_short == 1
    found = {(row["task"], row["item"], row["ordinal"]) for row in read_hits(out)}
    assert found == {
        *((task, f"both.jsonl:{row}", at) for task in "ab" for row, at in ((1, 1), (1, 2), (2, 1))),
        ("b", "own.jsonl:1", 3), (None, "s:held", 3),
    }  # fmt: skip
    too_short = np.array([len(item.text.split()) < 8 for item in items])
    counts = contamination(out, items, too_short, removed["ordinal"].to_numpy())
    assert counts == {
        "tasks": {
            "a": {"rows": 4, "compared": 3, "found": 2, "left": 0, "documents": 2},
            "b": {"rows": 5, "compared": 4, "found": 3, "left": 0, "documents": 3},
        },
        "heldout": {"rows": 2, "compared": 2, "found": 1, "left": 0, "documents": 1},
    }
    left = contamination(out, items, too_short, np.array([1, 3]))["tasks"]
    assert (left["a"]["left"], left["b"]["left"]) == (1, 1)
    first, *_ = evidence_of(out).items()
    best = ("train:f1", 1.0, clipped(prose(1, 40)))
    assert first == (("a", "both.jsonl:1"), Evidence({"removed": 2}, *best))
    note_cuts(out, np.array([2, 3]), tmp_path)
    assert [(row["ordinal"], row["outcome"]) for row in read_hits(out, "outcome") if row["task"] == "a"] == [
        (1, "removed"), (1, "removed"), (2, "cut"),
    ]  # fmt: skip
    (_, evidence), *_ = evidence_of(out).items()
    assert evidence == Evidence({"removed": 1, "cut": 1}, *best) and evidence.num_documents == 2
    assert contamination(out, items, too_short, removed["ordinal"].to_numpy()) == counts


def clipped(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


def test_without_a_hit_the_table_is_there(tmp_path: Path) -> None:
    items = task_items({"a": [written(tmp_path / "rows.jsonl", prose(1, 40))]})
    removed, _ = removals([prose(2, 100)], items, tmp_path / "out")
    assert not len(removed) and not read_hits(tmp_path / "out") and not evidence_of(tmp_path / "out")
    counts = contamination(tmp_path / "out", items, np.zeros(1, bool), np.zeros(0, np.int64))["tasks"]["a"]
    assert counts == {"rows": 1, "compared": 1, "found": 0, "left": 0, "documents": 0}


@given(st.lists(st.sampled_from("abcd"), min_size=3, max_size=12), st.randoms())
def test_the_passage_is_the_longest_run_in_common(words: list[str], chance: random.Random) -> None:
    grams = [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
    common = {gram for gram in grams if chance.random() < 0.6} or {grams[0]}
    hashes = np.concatenate([ngram_hashes(word_hashes(" ".join(gram)), 3) for gram in common])
    runs = [
        words[begin : end + 2]
        for begin in range(len(grams))
        for end in range(begin + 1, len(grams) + 1)
        if all(gram in common for gram in grams[begin:end])
    ]
    found = longest_common(", ".join(words), 3, hashes).split(", ")
    assert found in runs and len(found) == max(map(len, runs))


@pytest.mark.parametrize(
    "text", ["naïve_café 12 — “so”, said İvan;\n東京 ½ x² e.g. A·B", "_ a__b ٣ \U0001d400b \u0301a"]
)
def test_words_are_where_hashes_have_them(text: str) -> None:
    hashes = word_hashes(text, bare_characters())
    whole = longest_common(text, len(hashes), ngram_hashes(hashes, len(hashes)))
    assert word_hashes(whole, bare_characters()).tolist() == hashes.tolist()
    for at in range(len(hashes)):
        word = longest_common(text, 1, hashes[at : at + 1])
        assert word_hashes(word, bare_characters()).tolist()[0] == hashes[at]


def test_a_long_item_is_read_once_for_all_documents_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = contaminated.words_of
    monkeypatch.setattr(contaminated, "words_of", lambda *text: read.append(1) or real(*text))
    words = [f"word{number}" for number in range(2000)]
    hashes = word_hashes(" ".join(words))
    for first in range(0, 1900, 100):
        own = slice(first, first + 20)
        assert longest_common(" ".join(words), 13, ngram_hashes(hashes[own], 13)) == " ".join(words[own])
    assert len(read) == 1
