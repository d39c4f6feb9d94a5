"""The whole pipeline: every document is accounted for, bytes do not depend on workers, errors say what to change."""

import hashlib
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import data_config
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.artifact import ArtifactError
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import SPLITS, file_of, read_documents
from lifecycle.data.selecting.funnel import LostDocumentError
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.selecting.selection import remaining
from lifecycle.data.selecting.split import heldout_flags, split_positions
from lifecycle.data.tagging.tagging import tag_documents

NOUNS = ["harbour", "letter", "garden", "engine", "river", "teacher", "window", "market", "winter", "bridge", "paper"]
VERBS = ["holds", "carries", "follows", "changes", "reaches", "covers", "leaves", "meets", "builds", "finds"]
FILLERS = ["that have", "to the", "with a", "and the", "of their", "near some", "before any", "without this"]


def essay(seed: int, sentences: int = 25) -> str:
    chance = random.Random(seed)
    parts = []
    for _ in range(sentences):
        parts.append(
            f"The {chance.choice(NOUNS)} {chance.choice(VERBS)} {chance.choice(FILLERS)} {chance.choice(NOUNS)} "
            f"{chance.randint(2, 999)} {chance.choice(FILLERS)} {chance.choice(NOUNS)}"
        )
    return ".\n".join(parts) + ".\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        (folder / f"essay{number:02d}.txt").write_text(essay(number))
    (folder / "copy.txt").write_text(essay(3))
    (folder / "near.txt").write_text(essay(4).replace("The", "This", 1))
    (folder / "short.txt").write_text("Too short to be kept.\n")
    (folder / "mail.md").write_text(
        "---\nauthor: a.person@company.org\n---\n" + essay(50) + "Write to a.person@company.org.\n"
    )
    (folder / "page.html").write_text(f"<h1>Page</h1><p>{essay(51)}")
    (folder / "code.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "empty.txt").write_text("")
    (folder / "rows.jsonl").write_text(json.dumps({"text": essay(52), "url": "u \ud800"}) + "\n{broken\n")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.txt")).write_text(essay(53))
    return folder


def tag(folder: Path, out: Path, **changes: Any) -> Path:
    out.mkdir()
    tag_documents(data_config(str(folder), **changes), out.with_name(f"{out.name}-partitions"), out, Silent())
    return out


def prepare(
    folder: Path, out: Path, seed: int = 0, eval_rows: dict[str, list[Path]] | None = None, **changes: Any
) -> dict[str, Any]:
    """Tags the files below `folder` and selects from them."""
    tagging = tag(folder, out.with_name(f"{out.name}-tagging"), **changes)
    out.mkdir()
    return prepare_documents(tagging, data_config(str(folder), **changes), out, Silent(), seed, eval_rows)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_document_is_accounted_for(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stats = prepare(corpus, out)
    rows = {split: list(read_documents(out, split)) for split in SPLITS}
    reasons = {row["path"]: (row["step"], row["reason"]) for row in rows["removed"]}
    assert reasons["essay03.txt"] == ("exact_duplicates", "exact_duplicate")  # copy.txt comes first
    assert reasons["short.txt"] == ("quality", "too_few_words")
    assert reasons["near.txt"] == ("near_duplicates", "near_duplicate")
    assert {path for path in reasons if not path.startswith("essay")} == {"short.txt", "near.txt"}
    ids = [row["id"] for split in ("kept", "heldout") for row in rows[split]]
    assert len(ids) == len(set(ids)) and all(row["step"] is None for row in rows["kept"])
    assert (
        stats["train"]["documents"] == len(rows["kept"]) and stats["heldout"]["documents"] == len(rows["heldout"]) >= 1
    )
    assert stats["train"]["bytes"] == sum(len(row["text"].encode()) for row in rows["kept"])
    assert sum(map(len, rows.values())) == 40 + 8  # all but empty.txt and the broken row
    assert sorted(entry.split(": ")[0] for entry in stats["skipped_files"]) == ["mine:empty.txt", "mine:rows.jsonl:2"]


def test_rows_carry_their_origin_tags_and_no_personal_data(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(corpus, out)
    rows = {row["path"]: row for split in SPLITS for row in read_documents(out, split)}
    mail, code = rows["mail.md"], rows["code.py"]
    assert json.loads(mail["meta"]) == {"author": "EMAIL_ADDRESS"}
    assert mail["text"].endswith("Write to EMAIL_ADDRESS.\n") and mail["pii_email"] == 1
    assert (mail["source"], mail["license"], mail["format"], mail["language"]) == ("mine", "CC0", "markdown", "en")
    assert mail["word_count"] > 200 and mail["language_score"] > 0.4 and mail["max_line_length"] is None
    assert (code["language"], code["max_line_length"], code["word_count"]) == ("python", 16, None)
    assert "caf\ufffd.txt" in rows
    assert json.loads(rows["rows.jsonl:1"]["meta"]) == {"url": "u \ud800"}
    assert next(read_documents(out, "kept", ["path"])).keys() == {"path"}


def test_funnel_agrees_with_the_files(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(corpus, out)
    funnel = json.loads((out / "funnel.json").read_text())
    read, *steps = funnel["steps"]
    assert read["reasons"] == {"broken_row": 1, "empty": 1} and read["files_in"] == 49
    flow = read["documents_out"]
    removed = Counter((row["step"], row["reason"]) for row in read_documents(out, "removed"))
    for step in steps:
        assert step["documents_in"] == flow
        assert step["documents_in"] - step["documents_out"] == sum(step["reasons"].values())
        if step["step"] != "heldout_split":
            assert step["reasons"] == {reason: n for (name, reason), n in removed.items() if name == step["step"]}
        assert all(sample["reason"] in step["reasons"] for sample in step["samples"])
        flow = step["documents_out"]
    assert flow == sum(1 for _ in read_documents(out, "kept"))
    assert next(s for s in steps if s["step"] == "pii")["edits"] == {"pii_email": 1}
    assert [entry["path"] for entry in funnel["skipped"]] == ["empty.txt", "rows.jsonl:2"]


@pytest.mark.parametrize(("module", "told"), [("writing", "in the files"), ("funnel", "came to step normalise")])
def test_a_document_that_vanishes_ends_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, told: str
) -> None:
    def one_less(documents: pa.Table, removed: pa.Table) -> pa.Table:
        left = remaining(documents, removed)
        return left.slice(0, len(left) - 1)

    monkeypatch.setattr(f"lifecycle.data.selecting.{module}.remaining", one_less)
    with pytest.raises(LostDocumentError, match=told):
        prepare(corpus, tmp_path / "out", workers=1)


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ({"text": essay(number % 900, 3)} for number in range(4000))  # of several row groups, and many removed
    (corpus / "many.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    whole = prepare(corpus, tmp_path / "whole", workers=1)
    monkeypatch.setattr("lifecycle.data.document_writer.LEAST_PIECE", 1)
    one = prepare(corpus, tmp_path / "one", workers=1)
    assert len(list((tmp_path / "one-tagging").glob("tagged-*"))) > 2
    assert one == whole and hashes(tmp_path / "one")["funnel.json"] == hashes(tmp_path / "whole")["funnel.json"]
    for split in SPLITS:
        assert list(read_documents(tmp_path / "one", split)) == list(read_documents(tmp_path / "whole", split))
    monkeypatch.setattr("lifecycle.data.tagging.engine.POOL_BYTES", 0)
    two = prepare(corpus, tmp_path / "two", workers=2, partition_bytes=10_000)  # many partitions, so that workers race
    assert one == two
    for name in ("", "-tagging"):
        assert hashes(tmp_path / f"one{name}") == hashes(tmp_path / f"two{name}")
    assert prepare(corpus, tmp_path / "other", seed=1) != one


def test_planted_evaluation_rows_are_kept_out(corpus: Path, tmp_path: Path) -> None:
    before = prepare(corpus, tmp_path / "before")
    assert before["funnel"][-1]["reasons"] == {}
    victim = next(row for row in read_documents(tmp_path / "before", "kept") if row["path"].startswith("essay"))
    rows = tmp_path / "eval.jsonl"
    rows.write_text(json.dumps({"prompt": " ".join(victim["text"].split()[20:60]), "answer": "no"}) + "\n")
    after = prepare(corpus, tmp_path / "after", eval_rows={"quiz": [rows]})
    assert after["funnel"][-1]["reasons"] == {"eval_overlap": 1} and after["items_too_short_to_compare"] == 1
    removed = [row for row in read_documents(tmp_path / "after", "removed") if row["step"] == "decontamination"]
    assert [row["path"] for row in removed] == [victim["path"]] and "eval.jsonl:1" in removed[0]["detail"]
    counts = {"rows": 1, "compared": 1, "found": 1, "left": 0, "documents": 1}
    assert after["contamination"]["tasks"] == {"quiz": counts} and not after["contamination"]["heldout"]["found"]


def test_an_emptied_corpus_says_what_emptied_it(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 document is left to split"):  # code is never removed by language
        prepare(corpus, tmp_path / "out", language={"keep": ["fr"]})
    (corpus / "code.py").unlink()
    with pytest.raises(ConfigError, match=r"language took 47 \(language_en 47\): change data\.language\.keep"):
        prepare(corpus, tmp_path / "out2", language={"keep": ["fr"]})
    with pytest.raises(
        ConfigError, match=r"quality took 47 \(too_few_words 47\): change data\.quality\.gopher\.min_words"
    ):
        prepare(corpus, tmp_path / "out3", quality={"gopher": {"min_words": 5000}})


def test_useless_sources_are_errors(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{broken\n{too\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl: no row with text.*; not JSON: .*max_skipped"):
        prepare(folder, tmp_path / "a")
    (folder / "rows.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"read: 0 documents from 1 files \(empty 1\)"):
        prepare(folder, tmp_path / "b")


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no kept-\*\.parquet"):
        next(read_documents(tmp_path, "kept"))


def flags_of(
    texts: list[str], fraction: float, seed: int, sources: list[int] | None = None, most_bytes: int = 10**9
) -> list[bool]:
    contents = np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts], np.uint64)
    sizes = np.array([len(text) for text in texts], np.int64)
    numbers = np.array([0] * len(texts) if sources is None else sources, np.int64)
    return heldout_flags(split_positions(contents, seed), numbers, sizes, fraction, most_bytes).tolist()


@given(st.sets(st.text(st.characters(codec="utf-8")), min_size=2, max_size=30), st.integers(0, 5), st.randoms())
def test_split_depends_on_content_and_seed_not_on_order(texts: set[str], seed: int, chance: random.Random) -> None:
    ordered = sorted(texts)
    flags = dict(zip(ordered, flags_of(ordered, 0.2, seed), strict=True))
    chance.shuffle(ordered)
    assert dict(zip(ordered, flags_of(ordered, 0.2, seed), strict=True)) == flags
    assert 0 < sum(flags.values()) < len(flags)


def test_split_size_growth_and_every_source() -> None:
    texts = [f"text {number}" for number in range(4000)]
    flags = flags_of(texts, 0.05, 0)
    assert 150 < sum(flags) < 250
    assert flags_of(texts[:2000], 0.05, 0) == flags[:2000]
    others = flags_of(texts, 0.05, 1)
    assert 150 < sum(others) < 250 and sum(map(min, flags, others)) < 50  # seeds draw independently
    unlucky = [text for text, flag in zip(texts, flags, strict=True) if not flag][:40]
    assert sum(flags_of(texts + unlucky, 0.05, 0, [0] * 4000 + [1] * 40)[4000:]) == 1
    assert [sum(flags_of(texts[:count], 0.0001, 0)) for count in (2, 3, 20)] == [1, 2, 2]
    with pytest.raises(ConfigError, match="1 document is left"):
        flags_of(["alone"], 0.5, 0)


def test_a_large_corpus_holds_out_no_more_text_than_asked() -> None:
    texts = [f"text {number:04d}" for number in range(4000)]
    flags, capped = flags_of(texts, 0.05, 0), flags_of(texts, 0.05, 0, most_bytes=900)
    assert sum(capped) == 100 and all(flag for flag, kept in zip(flags, capped, strict=True) if kept)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("a/b.py", "a/b.py"),
        ("topics.py#in", "topics.py"),
        ("topics.py#a.b#c\nd", "topics.py"),
        ("rows.JSONL:12", "rows.JSONL"),
        ("x.parquet:3", "x.parquet"),
        ("rows.json.zst:5", "rows.json.zst"),
        ("a.warc.gz:1023", "a.warc.gz"),
        ("a.mbox:3", "a.mbox"),
        ("x.tar.gz#docs/rows.jsonl:3", "x.tar.gz"),
        ("notes.txt:3", "notes.txt:3"),
        ("c#/a.txt", "c#/a.txt"),
    ],
)
def test_the_file_that_a_document_is_a_part_of(path: str, file: str) -> None:
    assert file_of(path) == file


def test_documents_that_another_version_tagged_are_refused(corpus: Path, tmp_path: Path) -> None:
    tagging = tag(corpus, tmp_path / "a")
    (tagged,) = tagging.glob("tagged-*.parquet")
    pq.write_table(pq.read_table(tagged).drop_columns("address"), tagged)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"tagged-00000\.parquet: another version made it; delete its folder"):
        prepare_documents(tagging, data_config(str(corpus)), tmp_path / "out", Silent(), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_document_bytes": 2**64 - 1}, {"dedup": {"lines": 2**63}}, {"dedup": {"paragraphs": 2**63}},
        {"dedup": {"substrings": 2**63}}, {"decontamination": {"ngram": 2**64 - 1}}, {"quality": {"short_line": 2**63}},
    ],
)  # fmt: skip
def test_numbers_that_no_corpus_reaches_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="less than or equal to"):
        data_config("corpus", **settings)
