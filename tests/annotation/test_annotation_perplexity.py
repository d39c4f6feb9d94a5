"""Perplexity by a model of our own: what it is, what a stop costs, and that selection alone depends on it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.annotation.perplexity import beginning, measure_perplexity
from lifecycle.cli.data import data
from lifecycle.core.artifact import intact_hash
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import SPLITS, read_documents, tagged_documents
from lifecycle.evals.texts import score_texts
from tests.annotation.conftest import DEBUG, Run, small_model


class KillAt(Silent):
    """Ends at a call, as Ctrl-C does."""

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        raise KeyboardInterrupt


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(st.text(max_size=20), st.integers(0, 30))
def test_a_text_is_cut_between_characters(text: str, most: int) -> None:
    found = beginning(text, most)
    assert text.startswith(found) and len(found.encode()) <= most
    assert found == text or len(text[: len(found) + 1].encode()) > most


@pytest.mark.slow
def test_a_score_is_the_text_s_own_whatever_is_beside_it(run: Run, tmp_path: Path) -> None:
    tagging, model, out = run.select()["tagging"], small_model(), tmp_path / "p.jsonl"
    found = measure_perplexity(tagging, out, model, "v1", 300, Silent())
    texts = {row["id"]: row["text"] for stretch in tagged_documents(tagging) for row in stretch.read().to_pylist()}
    rows = rows_of(out)
    assert found.documents == len(rows) == len(texts) == 32 and [row["id"] for row in rows] == [*texts]
    for row in rows[:3]:
        (own,) = score_texts(model, [texts[row["id"]][:300]])
        assert row["bits_per_byte"] == pytest.approx(own.nats / math.log(2) / 300, abs=1e-5) and row["bytes"] == 300
        assert math.log(row["perplexity"]) * row["tokens"] == pytest.approx(own.nats, rel=1e-5)
        assert (row["tokens"], row["model"]) == (301, "v1")
    again = measure_perplexity(tagging, out, model, "v1", 300, Silent())
    assert again.before == 32 and rows_of(out) == rows
    with pytest.raises(ConfigError, match="most_bytes 300 -> 99"):
        measure_perplexity(tagging, out, model, "v1", 99, Silent())


def test_what_a_killed_run_has_measured_is_not_measured_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagging, model, out = run.select()["tagging"], small_model(), tmp_path / "p.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measure_perplexity(tagging, out, model, "v1", 100, KillAt())
    assert not out.exists() and len((tmp_path / "p.jsonl.journal").read_text().splitlines()) == 2
    monkeypatch.setattr("lifecycle.annotation.perplexity.score_texts", lambda *_: pytest.fail("measured again"))
    assert measure_perplexity(tagging, out, model, "v1", 100, Silent()).before == 32


def test_a_model_whose_numbers_are_not_finite_is_refused(run: Run, tmp_path: Path) -> None:
    import jax

    model = small_model()
    broken = model.__class__(**{**vars(model), "params": jax.tree.map(lambda x: x * math.nan, model.params)})
    with pytest.raises(ConfigError, match="weights are damaged"):
        measure_perplexity(run.select()["tagging"], tmp_path / "p.jsonl", broken, "v1", 100, Silent())


def test_selection_alone_depends_on_it(run: Run, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    out, before = tmp_path / "p.jsonl", run.select()
    words = ["--model", str(bundle), "--out", str(out), "--most-bytes", "200"]
    data(["perplexity", str(DEBUG), *run.words, *words], result_action="return_value")
    assert "32 documents, 0 of them measured before" in capsys.readouterr().out
    rows = rows_of(out)
    assert {row["model"] for row in rows} == {intact_hash(bundle)}
    limit = sorted(row["perplexity"] for row in rows)[20]
    scores = [{"name": "ppl", "path": str(out), "column": "perplexity", "max": limit}]
    after = run.select(f"data.scores={json.dumps(scores)}")
    assert after["tagging"] == before["tagging"] and after["documents"] != before["documents"]
    found = {row["id"]: (split, row) for split in SPLITS for row in read_documents(after["documents"], split)}
    for row in rows:
        split, own = found[row["id"]]
        assert own["ppl_score"] == row["perplexity"] and (split == "removed") == (row["perplexity"] > limit)
        assert split != "removed" or (own["step"], own["reason"]) == ("scores", "ppl")
