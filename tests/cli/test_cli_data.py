"""The verbs of `lifecycle data`: a document's way through the steps, documents in a pager, selections compared, and the
page on all of them, on texts and names that try to be more than texts."""

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cli.data import data, diff, fertility, peek, report, train_classifier, why
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.stages.chain import bring_up_to_date, finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.text.tokenizer import TokenizerConfig, train_tokenizer

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
NASTY_NAME = "a\x1b[2J\u202eb<b>"
NASTY = "<script>alert(1)</script> [red]Red[/red] \u202e\u2028 &amp; </td>"
SENTENCES = (
    "The harbour lies to the north of the old town and was built in three stages",
    "Ships that have a draught of more than nine metres wait outside for the tide",
    "In winter ice may close this passage for weeks, so goods travel by rail with care",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a run whose documents are selected."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        own = " ".join(f"and that of town{number}x{place}" for place in range(20))
        (folder / f"{number:02d}.txt").write_text(f"{SENTENCES[number % 3]}. Written to the clerk {number} {own}.\n")
    (folder / "copy.txt").write_text((folder / "03.txt").read_text())
    (folder / "short.txt").write_text("Too short # by far, for a.person@company.org.\n")
    (folder / f"{NASTY_NAME}.txt").write_text(f"{NASTY} is short.\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "[red]Short[/] row"}) + "\n{broken\n")
    words = [f"data.sources=[{{name: own, path: {folder}, license: CC0-1.0}}]", f"root={folder.parent / 'runs'}"]
    words += ["data.quality.repetition=null", "data.heldout_fraction=0.3", "data.max_skipped=0.5"]
    with pytest.raises(ConfigError, match="not finished"):
        why(DEBUG, "03.txt", *words)
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("documents",), Silent())
    return words


def asked(run: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    why(DEBUG, name, *run, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_a_kept_document_has_passed_every_step(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fates = [fate for number in range(12) for fate in asked(run, f"own:{number:02d}.txt", capsys)]
    kept = next(fate for fate in fates if fate["result"] == "kept")
    steps = {passed["step"]: passed for passed in kept["steps"]}
    assert [*steps][-4:] == ["exact_duplicates", "near_duplicates", "heldout_split", "decontamination"]
    assert not any(passed["reasons"] for passed in kept["steps"]) and kept["license"] == "CC0-1.0"
    measured = steps["quality"]["measured"]
    assert "(at least 50)" in measured[0] and measured[1].endswith("(at most 100,000)")
    assert measured[0].startswith("word_count ") and measured[2].endswith("(at least 3 and at most 10)")
    assert asked(run, kept["id"][:8], capsys) == [kept]
    heldout = next(fate for fate in fates if fate["result"] == "heldout")
    assert heldout["steps"][-1] == {"step": "heldout_split", "measured": [], "reasons": ["held out to be measured on"]}


def test_a_removed_document_has_every_reason(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (short,) = asked(run, "short.txt", capsys)
    assert (short["result"], short["removed_by"]) == ("removed", "quality")
    steps = {passed["step"]: passed for passed in short["steps"]}
    assert steps["quality"]["reasons"][0] == "too_few_words: 6 words < 50" and len(steps["quality"]["reasons"]) > 1
    assert steps["pii"]["measured"] == ["pii_email 1"] and "a.person" not in short["text"]
    assert "exact_duplicates" not in steps
    (copy,) = asked(run, "copy.txt", capsys)
    assert copy["steps"][-1]["step"] == "exact_duplicates"
    assert copy["steps"][-1]["reasons"] == ["exact_duplicate: same text as own:03.txt"]


def test_what_was_not_read_says_why(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (broken,) = asked(run, "rows.jsonl:2", capsys)
    assert (broken["result"], broken["reason"]) == ("not read", "broken_row")
    why(DEBUG, "rows.jsonl:2", *run)
    assert "own:rows.jsonl:2: not read: broken_row: not JSON" in capsys.readouterr().out


def test_people_see_a_table_and_no_markup_of_the_data(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    why(DEBUG, "rows.jsonl:1", *run)
    shown = capsys.readouterr().out
    assert "removed by quality" in shown and "too_few_words: 2 words < 50" in shown
    with pytest.raises(ConfigError, match="no document is named 'nowhere'"):
        why(DEBUG, "nowhere", *run)


def test_the_verb_reads_a_config_or_a_command(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data(["why", str(DEBUG), "short.txt", *run], result_action="return_value")
    assert "too_few_words" in capsys.readouterr().out
    data([str(DEBUG), *run, "--help"], result_action="return_value")
    assert "why" in capsys.readouterr().out


def test_a_name_of_a_document_is_no_command_to_the_terminal(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    why(DEBUG, f"own:{NASTY_NAME}.txt", *run)
    shown = capsys.readouterr().out
    assert r"own:a\x1b[2J\u202eb<b>.txt" in shown and "\x1b" not in shown and "\u202e" not in shown


def peeked(run: list[str], capsys: pytest.CaptureFixture[str], **options: Any) -> list[dict[str, Any]]:
    peek(str(DEBUG), *run, as_json=True, **options)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_documents_are_chosen_by_split_source_and_every_reason(
    run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    everything = peeked(run, capsys)
    assert {row["split"] for row in everything} == {"kept", "heldout", "removed"} and len(everything) == 16
    removed = peeked(run, capsys, split="removed")
    assert removed == [row for row in everything if row["split"] == "removed"] and len(removed) == 4
    assert {row["path"] for row in peeked(run, capsys, reason="too_few_words")} == {
        "short.txt", "rows.jsonl:1", f"{NASTY_NAME}.txt",
    }  # fmt: skip
    assert [row["path"] for row in peeked(run, capsys, reason="exact_duplicates")] == ["copy.txt"]
    further = peeked(run, capsys, reason="stop_words", columns="text, word_count")
    assert all(row["reason"] == "too_few_words" and row["word_count"] < 50 for row in further) and further
    with pytest.raises(ConfigError, match="no document with source 'none'"):
        peek(str(DEBUG), *run, source="none")
    with pytest.raises(ConfigError, match=r"did you mean 'too_few_words'\?; reasons: .*exact_duplicates"):
        peek(str(DEBUG), *run, reason="too_few_wrds")
    with pytest.raises(ConfigError, match="kept documents have no reason"):
        peek(str(DEBUG), *run, split="kept", reason="quality")
    with pytest.raises(ConfigError, match="did you mean 'word_count'"):
        peek(str(DEBUG), *run, columns="word_cont")


def test_a_document_is_shown_whole_or_in_part_and_moves_no_cursor(
    run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    peek(str(DEBUG), *run, split="removed", chars=10, columns="text,word_count")
    shown = capsys.readouterr().out
    assert "removed by quality: too_few_words  own:short.txt" in shown and "    6 words < 50" in shown
    assert "        Too short \n        … 29 more characters\n" in shown and "    word_count: 7\n" in shown
    peek(str(DEBUG), *run, split="removed", chars=0)
    shown = capsys.readouterr().out
    assert "<script>alert(1)</script> [red]Red[/red]" in shown and "more characters" not in shown
    assert not {*"\x1b\u202e\u2028"} & {*shown}


def folder_of(words: list[str]) -> Path:
    """The folder with the selected documents."""
    return finished_stage(load_config(RunConfig, DEBUG, words), "documents").path


def test_a_reader_who_leaves_ends_it_without_a_word(run: list[str]) -> None:
    program = "import sys; from lifecycle.cli.data import data; data(sys.argv[1:], result_action='return_value')"
    command = [sys.executable, "-c", program, "peek", str(folder_of(run))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def test_a_terminal_gets_the_user_s_pager(run: list[str]) -> None:
    program = "import sys; from lifecycle.cli.data import data; data(sys.argv[1:], result_action='return_value')"
    command = [sys.executable, "-c", program, "peek", str(folder_of(run)), "--split", "removed"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, env=os.environ | {"PAGER": "sed s/^/paged:/"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # the other side has closed the terminal
            pass
        assert process.wait() == 0
    lines = shown.decode().splitlines()
    assert any("own:short.txt" in line for line in lines) and all(line.startswith("paged:") for line in lines)


@pytest.fixture(scope="module")
def looser(run: list[str]) -> list[str]:
    """The words of another selection of the same documents."""
    words = [*run, "data.heldout_fraction=0.1", "data.quality.gopher.min_words=5"]
    others = ("min_mean_word_length", "max_mean_word_length", "max_hashes_per_word", "min_alphabetic_words")
    words += [f"data.quality.gopher.{name}=null" for name in (*others, "min_stop_words")]
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("documents",), Silent())
    return words


def test_two_selections_are_compared(run: list[str], looser: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    a = str(folder_of(run))
    diff(a, str(DEBUG), *looser, as_json=True)
    tree = json.loads(capsys.readouterr().out)
    assert tree["a"]["folder"] == a and tree["b"]["folder"] == str(folder_of(looser))
    moved = [move for move in tree["moves"] if move["from"]["reason"] == "too_few_words"]
    assert sum(move["documents"] for move in moved) == 2 and tree["entered"]["documents"] >= 1
    assert {sample["document"] for move in moved for sample in move["samples"]} >= {"own:short.txt"}
    sides = [sum(tree[side][split]["documents"] for split in ("kept", "heldout", "removed")) for side in "ab"]
    assert sides == [16, 16] and sum(move["documents"] for move in tree["moves"]) + tree["unchanged"]["documents"] == 16
    diff(a, str(DEBUG), *looser)
    shown = capsys.readouterr().out
    assert "removed by quality: too_few_words -> " in shown and "6 words < 50" in shown
    assert not {*"\x1b\u202e\u2028"} & {*shown}
    with pytest.raises(ConfigError, match="is a folder, so x=y changes nothing"):
        diff(a, a, "x=y")


class Page(HTMLParser):
    """The tags of a page, and its texts by the tag that they are in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[tuple[str, str]] = [("", "")]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        tag, text = self.texts[-1]
        self.texts[-1] = (tag, text + data)


def test_the_page_has_every_part_and_no_mark_up_of_the_data(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    report(DEBUG, *run, out=out)
    assert capsys.readouterr().out == f"{out}\n"
    html = out.read_text()
    page = Page(html)
    assert not page.tags & {"script", "b", "link", "img", "iframe"} and "\x1b" not in html
    titles = [text.strip() for tag, text in page.texts if tag == "h2"]
    assert titles == [
        "Overview", "Funnel", "By source, license and language", "Reasons", "Scores and limits", "Samples",
        "Duplicates", "Personal data and other edits", "Contamination", "Not read", "Speed and cost",
    ]  # fmt: skip
    said = " ".join(text.strip() for _, text in page.texts)
    for part in (
        "Every document read is kept, held out or removed, at every step.", "≥ 50", "≤ 100,000", NASTY.split()[0],
        "quality, too_few_words: 3 of 3", "own:03.txt", "pii_email", "1 (1)", "broken_row", "not JSON", "cost per GB",
        "Speed and cost of each step", "join partitions", "pii", "exact duplicates", "decontamination",
    ):  # fmt: skip
        assert part in said, part
    report(DEBUG, *run, out=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == html


def test_the_page_says_what_a_classifier_is_worth(
    run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("good", "bad"):
        rows = ({"text": f"A {kind} text, number {number}."} for number in range(420))
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train_classifier(tmp_path / "kind.npz", good=[tmp_path / "good.jsonl"], bad=[tmp_path / "bad.jsonl"])
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [*run, "data.classifiers=[{name: kind, path: ~/kind.npz}]"]
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("documents",), Silent())
    report(DEBUG, *words, out=tmp_path / "page.html")
    texts = [text.strip() for _, text in Page((tmp_path / "page.html").read_text()).texts]
    at = texts.index("calibration error")
    assert next(text for text in texts[at + 1 :] if text) == "kind" and "1.0000" in texts[at : at + 30]


def test_the_tokenizer_is_compared_with_others_on_heldout_text(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*run, "tokenizer.kind=bytes"]
    with pytest.raises(ConfigError, match="tokenizer is not finished"):
        fertility(DEBUG, *words)
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("tokenizer",), Silent())
    other = tmp_path / "of [red]others[/]"
    train_tokenizer(TokenizerConfig(vocab_size=300), [f"{text}. " for text in SENTENCES], other, 0)
    fertility(DEBUG, *words, against=(str(other),), as_json=True)
    own, trained = json.loads(capsys.readouterr().out)
    assert (own["tokenizer"], trained["tokenizer"], trained["vocab_size"]) == ("this run", str(other), 300)
    assert [(row["of"], row["bytes"]) for row in own["groups"]] == [
        (row["of"], row["bytes"]) for row in trained["groups"]
    ]
    assert own["groups"][0]["bytes_per_token"] == 1 < trained["groups"][0]["bytes_per_token"]
    fertility(DEBUG, *words, against=(str(other / "tokenizer.model"),))
    shown = capsys.readouterr().out
    assert "of [red]others[/]/tokenizer.model: 300 ids" in shown and "tokens per word" in shown
    assert "cannot write" not in shown
    losing = TokenizerConfig(vocab_size=50, byte_fallback=False)
    train_tokenizer(losing, [f"{text}. " for text in SENTENCES], tmp_path / "losing", 0)
    fertility(DEBUG, *words, against=(str(tmp_path / "losing"),))
    assert re.search(
        r"losing: 50 ids; \d+ of [\d,]+ tokens stand for text that it cannot write", capsys.readouterr().out
    )


def test_limits_of_one_language_are_shown_with_it(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*run, "data.quality.languages={en: {gopher: {min_words: 101}}}"]
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("documents",), Silent())
    (removed,) = asked(words, "own:01.txt", capsys)
    steps = {passed["step"]: passed for passed in removed["steps"]}
    assert steps["quality"]["measured"][0].endswith("(at least 101, language en)")
    (reason,) = steps["quality"]["reasons"]
    assert reason.startswith("too_few_words: ") and reason.endswith(" words < 101 (language en)")
    diff(str(folder_of(run)), str(DEBUG), *words, as_json=True)
    left = [move for move in json.loads(capsys.readouterr().out)["moves"] if move["to"]["reason"] == "too_few_words"]
    samples = [sample["detail"] for move in left for sample in move["samples"]]
    assert samples and all(detail.endswith(" words < 101 (language en)") for detail in samples)
