"""Cutting in the whole pipeline: what is cut is counted, stands beside the text, and depends on no worker."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from document_tables import data_config
from plain_limits import grouped_plainly

from lifecycle.core.progress import Silent
from lifecycle.data.documents import SPLITS, read_documents
from lifecycle.data.inspecting.fate import find_documents, passages, with_holders
from lifecycle.data.measures.filters import document_steps
from lifecycle.data.selecting.contamination import Evidence, evidence_of
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.tagging.tagging import tag_documents

NOTICE = "This page is part of the archive; write to archive@company.org for more of it.\n"
PASSAGE = " ".join(f"passage{number}" for number in range(30))
FEW = f"{' '.join(f'few{number}' for number in range(16))}.\n"  # of a page that is mostly notices
ASKED = 6  # the page that has the question; it is not held out
QUESTION = " ".join(f"question{number}" for number in range(30))
SETTINGS = {
    "quality": {"gopher": None, "repetition": None}, "heldout_fraction": 0.2,
    "dedup": {"lines": 3, "substrings": 20}, "decontamination": {"action": "cut"},
}  # fmt: skip


def essay(number: int) -> str:
    lines = (" ".join(f"word{number}x{line}x{word}" for word in range(8)) + ".\n" for line in range(40))
    return "".join(lines)


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """The folder with the sources, that of the selected documents, and their summary."""
    folder = tmp_path_factory.mktemp("cut")
    sources = folder / "sources"
    sources.mkdir()
    for number in range(12):
        text = essay(number)
        text += f"Mail number{number}@company.org for copy{number}.\n{NOTICE}" + essay(number + 100)
        text += f"\nSome own{number} words {PASSAGE} and other{number} words.\n" if number in (3, 5) else ""
        text += f"\n{QUESTION}\n\n{essay(number + 200)}" if number == ASKED else ""
        (sources / f"page{number:02d}.txt").write_text(text)
    (sources / "menu.txt").write_text(NOTICE * 2)
    (sources / "rest.txt").write_text(f"{FEW}{NOTICE * 8}")
    rows = folder / "eval.jsonl"
    rows.write_text(json.dumps({"prompt": QUESTION}) + "\n")
    (folder / "tagging").mkdir()
    tag_documents(data_config(str(sources), **SETTINGS), folder / "partitions", folder / "tagging", Silent())
    with grouped_plainly():
        yield folder, folder / "one", select(folder, "one")


def select(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    (folder / name / "cuts-of-a-killed-run").mkdir(parents=True)
    (folder / name / "cuts-of-a-killed-run" / "part").touch()
    config = data_config(str(folder / "sources"), **SETTINGS, **changes)
    return prepare_documents(folder / "tagging", config, folder / name, Silent(), 0, {"eval": (folder / "eval.jsonl",)})


def test_the_funnel_counts_all_that_is_cut(selected: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, stats = selected
    flow = {of: stats["funnel"][0][f"{of}_out"] for of in ("documents", "bytes")}
    for step in stats["funnel"][1:]:
        assert {of: step[f"{of}_in"] for of in flow} == flow, step["step"]
        flow = {of: step[f"{of}_out"] for of in flow}
    assert flow == stats["train"]
    edits = {step["step"]: step["edits"] for step in stats["funnel"] if step["edits"]}
    assert "repeated_paragraphs" not in [step["step"] for step in stats["funnel"]]
    kept = [row for split in ("kept", "heldout") for row in read_documents(out, split)]
    for step in ("repeated_lines", "repeated_substrings", "decontamination"):
        own = [[cut for cut in row["cuts"] or () if cut["step"] == step] for row in kept]
        assert edits[step]["passages_cut"] == sum(map(len, own)) > 0
        assert edits[step]["documents_cut"] == sum(map(bool, own))
    lost = sum(of["bytes_cut"] for step, of in edits.items() if step != "pii")
    removed = sum(row["text_bytes"] for row in read_documents(out, "removed"))
    assert stats["funnel"][0]["bytes_out"] - sum(row["text_bytes"] for row in kept) == lost + removed


def test_documents_stand_cut_with_their_passages_beside_them(selected: tuple[Path, Path, dict[str, Any]]) -> None:
    _, out, _ = selected
    rows = {row["path"]: row for split in SPLITS for row in read_documents(out, split)}
    menu = rows.pop("menu.txt")
    assert (menu["step"], menu["reason"], menu["cuts"]) == (None, None, None)  # it comes first
    del rows["rest.txt"]
    assert len(rows) == 12
    cut = [path for path, row in sorted(rows.items()) if "archive" not in row["text"]]
    assert cut == sorted(rows)[2:] and all(rows[path]["step"] is None for path in rows)
    assert [path for path, row in rows.items() if "passage7 " in row["text"]] == ["page03.txt"]
    assert not any("question7" in row["text"] for row in rows.values())
    for row in rows.values():
        assert row["text_bytes"] == len(row["text"].encode())
        assert all(row["text"][span["begin"] : span["end"]] == "EMAIL_ADDRESS" for span in row["pii_spans"])
        assert len(row["pii_spans"]) == row["text"].count("EMAIL_ADDRESS")
    asked = {cut["step"]: cut["text"] for cut in rows[f"page{ASKED:02d}.txt"]["cuts"]}
    assert asked["repeated_lines"] == NOTICE.replace("archive@company.org", "EMAIL_ADDRESS")
    assert QUESTION in asked["decontamination"] and len(asked["decontamination"]) - len(QUESTION) <= 402
    (hit,) = evidence_of(out).items()
    assert hit == (
        ("eval", "eval.jsonl:1"),
        Evidence({"cut": 1}, f"mine:page{ASKED:02d}.txt", 1.0, QUESTION[:199] + "…"),
    )


def test_why_shows_what_was_cut(selected: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, _ = selected
    (fate,) = find_documents(out, "page05.txt")
    steps = document_steps(data_config(str(folder / "sources"), **SETTINGS))
    shown = {passage.step: passage.measured for passage in passages(fate, steps)}
    assert "This page is part of the archive" in shown["repeated_lines"][0]
    assert PASSAGE[:100] in shown["repeated_substrings"][0] and "repeated_paragraphs" not in shown


def test_why_names_the_first_document_that_still_has_a_passage(selected: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, _ = selected
    config = data_config(str(folder / "sources"), **SETTINGS)
    texts = {row["path"]: " ".join(row["text"].split()) for row in read_documents(out, "kept")}
    texts |= {row["path"]: " ".join(row["text"].split()) for row in read_documents(out, "heldout")}
    seen: dict[str, set[str]] = {}
    for path in [*texts, "rest.txt"]:
        (fate,) = with_holders(out, find_documents(out, path), config.dedup)
        for cut in fate.row["cuts"]:
            having = [name for name, text in texts.items() if " ".join(cut["text"].split()) in text]
            is_of_tests = cut["step"] == "decontamination"
            assert cut["stays_in"] == (None if is_of_tests or not having else f"mine:{having[0]}"), cut
            seen.setdefault(cut["step"], set()).add(cut["stays_in"])
    assert seen["repeated_lines"] == {"mine:page01.txt"} and seen["repeated_substrings"] == {"mine:page03.txt"}
    (fate,) = with_holders(out, find_documents(out, "page05.txt"), config.dedup)
    shown = {passage.step: passage.measured for passage in passages(fate, document_steps(config))}
    assert "(stays in mine:page03.txt): " in shown["repeated_substrings"][0]


def test_one_that_is_mostly_cut_is_whole_with_what_would_have_gone(
    selected: tuple[Path, Path, dict[str, Any]],
) -> None:
    folder, out, _ = selected
    (fate,) = find_documents(out, "rest.txt")
    notices = NOTICE.replace("archive@company.org", "EMAIL_ADDRESS") * 8
    assert (fate.split, fate.row["reason"], fate.row["text"]) == ("removed", "mostly_repeated", FEW + notices)
    assert "".join(cut["text"] for cut in fate.row["cuts"]) == notices
    assert [cut["step"] for cut in fate.row["cuts"]] == ["repeated_lines"] * len(fate.row["cuts"])
    last = list(passages(fate, document_steps(data_config(str(folder / "sources"), **SETTINGS))))[-1]
    assert last.step == "repeated_lines" and last.measured[0].startswith(f"would cut characters {len(FEW)} to ")
    (reason,) = last.reasons
    share = f"87% of the text stands in documents before it (passages: {len(fate.row['cuts'])})"
    assert reason == f"mostly_repeated: {share}: more than dedup.max_cut=0.8"


def test_workers_change_no_byte(selected: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out, stats = selected
    monkeypatch.setattr("lifecycle.data.tagging.engine.POOL_BYTES", 0)
    monkeypatch.setattr("lifecycle.data.documents.PIECE", 1)
    assert select(folder, "two", workers=2) == stats
    one, two = (
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in own.iterdir()}
        for own in (out, folder / "two")
    )
    assert one == two and not any("cuts-" in name for name in one)
