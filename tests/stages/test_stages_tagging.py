"""Tagging and documents: a threshold selects again from the same tagged documents, a source is tagged again."""

from pathlib import Path

import pytest

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.data.documents import read_documents
from lifecycle.stages import tagging
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        words = " ".join(
            f"the harbour of town{word} and that of city{word * number}" for word in range(10 + 5 * number)
        )
        (folder / f"{number}.txt").write_text(words)
    return folder


def made(corpus: Path, *overrides: str) -> dict[str, Artifact]:
    sources = f"data.sources=[{{name: own, path: {corpus}}}]"
    root = f"root={corpus.parent / 'runs'}"
    rules = "data.quality.disable=[repetition]"
    config = load_config(RunConfig, DEBUG, [sources, root, rules, *overrides])
    return bring_up_to_date(config, ("documents",), Silent())


def kept(artifacts: dict[str, Artifact]) -> int:
    folder = artifacts["documents"].path
    return sum(1 for split in ("kept", "heldout") for _ in read_documents(folder, split, ["id"]))


def test_a_changed_threshold_does_not_tag_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(corpus)
    monkeypatch.setattr(tagging, "tag_documents", lambda *_: pytest.fail("tagged again"))
    after = made(corpus, "data.quality.min_words=200")
    assert after["tagging"].manifest == before["tagging"].manifest
    assert after["documents"].path != before["documents"].path
    assert 0 < kept(after) < kept(before) == 6


def test_what_decides_the_columns_tags_again(corpus: Path) -> None:
    before = made(corpus)
    (corpus / "0.txt").write_text((corpus / "0.txt").read_text() + " and another of them")
    after = made(corpus)
    assert after["tagging"].content_hash != before["tagging"].content_hash
    assert made(corpus, "data.pii=[email]")["tagging"].path != after["tagging"].path
