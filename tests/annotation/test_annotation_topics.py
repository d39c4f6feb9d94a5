"""Topics by a model of our own: which documents are alike, what a stop costs, and what is refused."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.annotation import topics
from lifecycle.annotation.perplexity import beginning
from lifecycle.annotation.topic_words import distinctive
from lifecycle.annotation.topics import TopicSettings, find_topics
from lifecycle.cli.data import data
from lifecycle.core.artifact import intact_hash
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import Split, read_documents
from lifecycle.inference.texts import embed_texts
from lifecycle.text.row_files import read_rows
from tests.annotation.conftest import DEBUG, Run, essay, small_model

SETTINGS = TopicSettings(2, 200, 0)
KINDS = {
    "prose": [essay(number) for number in range(12)],
    "sums": [f"{n} + {n * 7} = {n * 8};\n" * 9 for n in range(9)],
}


class KillAt(Silent):
    """Ends at the second update, as Ctrl-C does."""

    def __init__(self) -> None:
        self.seen = 0

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        self.seen += 1
        if self.seen == 2:
            raise KeyboardInterrupt


def selected(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    """Documents (source, text) of each split, as an artifact of stage `documents` has them."""
    folder.mkdir()
    for split in ("kept", "heldout"):
        rows = splits.get(split, [])
        names = [hashlib.sha256(f"{split}{number}".encode()).hexdigest()[:32] for number in range(len(rows))]
        columns = dict.fromkeys(("path", "url", "license"), [""] * len(rows))
        table = {"id": names, "source": [source for source, _ in rows], "text": [text for _, text in rows], **columns}
        table = {name: pa.array(values, pa.string()) for name, values in table.items()}
        table["content"] = pa.array([bytes.fromhex(name) for name in names], pa.binary())
        pq.write_table(pa.table(table), folder / f"{split}-00000.parquet")
    return folder


def kinds(folder: Path) -> Path:
    rows = [(source, text) for source, texts in KINDS.items() for text in texts]
    return selected(folder, kept=rows[1:-1], heldout=[rows[0], rows[-1]])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def test_documents_that_are_alike_have_one_topic_and_its_words(tmp_path: Path) -> None:
    folder, out = kinds(tmp_path / "documents"), tmp_path / "topics.parquet"
    found = find_topics(folder, out, small_model(), "v1", SETTINGS, Silent())
    prose, sums = found.topics
    assert (prose.sources, sums.sources) == ({"prose": 12}, {"sums": 9}) and (found.before, found.empty) == (0, 0)
    assert prose.bytes == sum(len(text.encode()) for text in KINDS["prose"]) and prose.documents == 12
    assert "and" in prose.words and sums.words == []
    splits: tuple[Split, ...] = ("kept", "heldout")
    documents = [row for split in splits for row in read_documents(folder, split)]
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [row["id"] for row in documents]
    assert [row["topic"] for row in rows] == [int(row["source"] == "sums") for row in documents]
    assert {row["model"] for row in rows} == {"v1"}
    vectors = embed_texts(small_model(), [beginning(row["text"], 200) for row in documents]).astype(float)
    moved = vectors - vectors[:-2].mean(0)  # of the kept ones
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    for topic in (0, 1):
        own = np.array([row["topic"] == topic for row in rows])
        centre = moved[:-2][own[:-2]].sum(0)
        cosines = moved[own] @ centre / np.linalg.norm(centre)
        assert [row["similarity"] for row in rows if row["topic"] == topic] == pytest.approx(cosines, abs=2e-3)
        assert found.topics[topic].similarity == pytest.approx(cosines.mean(), abs=2e-3)


def test_the_same_whatever_the_batches_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole, out = kinds(tmp_path / "documents"), tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    model = small_model()
    undisturbed = find_topics(folder, whole, model, "v1", SETTINGS, Silent())
    monkeypatch.setattr(topics, "PIECE", 1)
    monkeypatch.setattr("lifecycle.data.inspecting.selected.TEXTS", 5)
    with pytest.raises(KeyboardInterrupt):
        find_topics(folder, out, model, "v1", SETTINGS, KillAt())
    assert not out.exists()
    resumed = find_topics(folder, out, model, "v1", SETTINGS, Silent())
    assert resumed.topics == undisturbed.topics and 0 < resumed.before < 21
    assert out.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(topics, "Embedder", lambda *_, **__: lambda *_: pytest.fail("embedded again"))
    more = find_topics(folder, out, model, "v1", TopicSettings(4, 200, 0), Silent())
    assert more.before == 21 and len(more.topics) == 4
    with pytest.raises(ConfigError, match="most_bytes 200 -> 99"):
        find_topics(folder, out, model, "v1", TopicSettings(2, 99, 0), Silent())


def test_documents_without_a_text_have_no_topic_and_are_counted(tmp_path: Path) -> None:
    rows = [("a", text) for text in ("one and two", "", "3 + 4 = 7", "five or six")]
    folder = selected(tmp_path / "documents", kept=rows, heldout=[("a", "")])
    found = find_topics(folder, tmp_path / "t.parquet", small_model(), "v1", SETTINGS, Silent())
    assert (
        found.empty == 2 and sum(topic.documents for topic in found.topics) == len(rows_of(tmp_path / "t.parquet")) == 3
    )
    with pytest.raises(ConfigError, match="5 topics of 3 kept documents with a text"):
        find_topics(folder, tmp_path / "t.parquet", small_model(), "v1", TopicSettings(5, 200, 0), Silent())
    none = selected(tmp_path / "none", kept=[("a", "")])
    with pytest.raises(ConfigError, match="2 topics of 0 kept documents"):
        find_topics(none, tmp_path / "n.parquet", small_model(), "v1", SETTINGS, Silent())


def test_a_model_whose_numbers_are_not_finite_is_refused(tmp_path: Path) -> None:
    model = small_model()
    broken = model.__class__(**{**vars(model), "params": jax.tree.map(lambda x: x * math.nan, model.params)})
    with pytest.raises(ConfigError, match=r"cannot be embedded: .*weights .* damaged"):
        find_topics(kinds(tmp_path / "documents"), tmp_path / "t.parquet", broken, "v1", SETTINGS, Silent())


def test_words_are_those_that_a_group_has_and_the_others_have_not() -> None:
    common = "the and of with"
    groups = [[f"{common} {kind} {kind}s w{number}" for number in range(9)] for kind in ("piano", "river", "market")]
    found = distinctive(groups, 2)
    assert found == [["piano", "pianos"], ["river", "rivers"], ["market", "markets"]]
    assert distinctive([["one two"], []], 3)[1] == []


@pytest.mark.slow
def test_the_verb_finds_topics_of_a_run_s_documents(
    run: Run, documents: Path, bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "topics.parquet"
    words = [
        str(DEBUG),
        *run.words,
        "--model",
        str(bundle),
        "--out",
        str(out),
        "--most-bytes",
        "100",
        "--clusters",
        "3",
    ]
    data(["topics", *words], result_action="return_value")
    shown = capsys.readouterr().out
    rows = rows_of(out)
    assert f"{out}: {len(rows)} documents; 0 embedded before" in shown and "own" in shown
    assert {row["model"] for row in rows} == {intact_hash(bundle)} and {row["topic"] for row in rows} == {0, 1, 2}
    splits: tuple[Split, ...] = ("kept", "heldout")
    assert [row["id"] for row in rows] == [row["id"] for split in splits for row in read_documents(documents, split)]
    data(["topics", *words, "--json"], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert told["before"] == len(rows) == sum(topic["documents"] for topic in told["topics"])
    with pytest.raises(ConfigError, match="stage tokenizer is not finished"):
        data(["topics", str(DEBUG), *run.words, "--model", "pretrain", "--out", str(out)], result_action="return_value")
