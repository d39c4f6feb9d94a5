"""Rules of lines: C4's and RefinedWeb's, each by itself; what is left and counted, and documents left without any."""

from typing import Any

import pytest
from document_tables import Verdict, data_config, judged, raw
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.inspecting.fate import Fate, passages
from lifecycle.data.measures.clean_lines import LineCleaner, lines_step
from lifecycle.data.measures.normalise import normalise
from lifecycle.data.measures.quality_config import C4LinesConfig, RefinedWebLinesConfig

SENTENCE = "The harbour lies to the north of the old town."


def cleaned(text: str, **lines: Any) -> tuple[dict[str, Any], Verdict]:
    return judged(lines_step(data_config(lines=lines)), raw(text), language="en")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("The harbour lies to the north of the old town", "c4_no_end_mark"),
        ("The harbour lies to the north...", "c4_no_end_mark"),
        ("It lies to north.", "c4_few_words"),
        ("Please turn JavaScript on to see this page.", "c4_phrase"),
        ("Read our Privacy Policy before you go on.", "c4_phrase"),
        ("This has a word of " + "x" * 1001 + " in it.", "c4_long_word"),
    ],
)
def test_lines_that_c4_removes(line: str, rule: str) -> None:
    row, verdict = cleaned(f"{SENTENCE}\n{line}\n", c4={})
    assert row["text"] == SENTENCE + "\n" and row["lines_left"] == 1
    assert {name: row[name] for name in row if name.startswith("c4_") and row[name]} == {rule: 1}
    assert verdict.step is None


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ('She said: "It lies to the north."', 'She said: "It lies to the north."'),
        ("It lies[12] in the[citation needed] north[edit], they say![]", "It lies in the north, they say!"),
        ("  It lies in the north, indented.", "  It lies in the north, indented."),
    ],
)
def test_lines_that_c4_keeps(line: str, left: str) -> None:
    row, _ = cleaned(f"{SENTENCE}\n{line}\n", c4={})
    assert row["text"] == f"{SENTENCE}\n{left}\n" and row["c4_citation"] == (line != left)


def test_thresholds_of_c4_are_settings() -> None:
    text = "No mark\nTwo cookies, use cookies\n[1] a b c d e f\n"
    row, _ = cleaned(text, c4={"end_marks": [], "min_words": None, "without": [], "citations": False})
    assert row["text"] == text
    row, _ = cleaned("a bb ccc dddd ee.\na b c d.\n", c4={"max_word_length": 3, "min_words": 4})
    assert row["text"] == "a b c d.\n"


@pytest.mark.parametrize(
    ("line", "rule", "left"),
    [
        ("ALL of this IS LOUD TEXT", "refinedweb_uppercase", None),
        ("ÄÖÜ ÄÖÜ äö", "refinedweb_uppercase", None),
        ("20250101", "refinedweb_digits", None),
        ("1,024K likes", "refinedweb_counter", None),
        ("(3 Comments)", "refinedweb_counter", None),
        ("Home", "refinedweb_few_words", None),
        ("3 items in cart", "refinedweb_pattern", "3"),
        ("Sign-in to see more", "refinedweb_pattern", "to see more"),
        ("Nobody knows. Read more...", "refinedweb_pattern", "Nobody knows."),
        ("sign-in read more...", "refinedweb_pattern", None),
        ("Read moreXYZ is kept", "", "Read moreXYZ is kept"),
        (f"3 items in cart: {SENTENCE}", "", f"3 items in cart: {SENTENCE}"),
        ("3 likes and a comment", "", "3 likes and a comment"),
    ],
)  # fmt: skip
def test_lines_of_refinedweb(line: str, rule: str, left: str | None) -> None:
    row, _ = cleaned(f"{SENTENCE}\n{line}\n", refinedweb={})
    assert row["text"] == (SENTENCE + "\n" if left is None else f"{SENTENCE}\n{left}\n")
    changed = {name: row[name] for name in row if name.startswith("refinedweb_") and row[name]}
    assert changed == ({rule: 1} if rule else {})


def test_a_document_that_loses_many_words_goes() -> None:
    text = f"{SENTENCE} {SENTENCE}\nHome\n"
    assert cleaned(text, refinedweb={})[1].reason is None
    row, verdict = cleaned(f"{SENTENCE}\nHome\n", refinedweb={})
    assert (row["removed_words"], verdict.reason) == (1 - 10 / 11, "removed_words")
    assert verdict.detail == "9.1% of the words > 5.0%"
    assert cleaned(f"{SENTENCE}\nHome\n", refinedweb={}, max_removed_words=None)[1].reason is None


def test_a_document_without_any_line_left_is_kept_to_be_looked_at() -> None:
    row, verdict = cleaned("Home\nAbout us\n", c4={})
    assert (row["text"], row["lines_left"], verdict.reason) == ("Home\nAbout us\n", 0, "no_line_left")


def test_empty_lines_stay_between_paragraphs_only() -> None:
    row, _ = cleaned(f"Home\n\n{SENTENCE}\n\nAbout\n\n{SENTENCE}\n{SENTENCE}\n\nHome\n", c4={})
    assert row["text"] == f"{SENTENCE}\n\n{SENTENCE}\n{SENTENCE}\n"


def test_code_other_languages_and_runs_without_rules_are_left_alone() -> None:
    on = lines_step(data_config(lines={"c4": {}, "refinedweb": {}}))
    for document, language in ((raw("x = 1\n", "code"), "python"), (raw("Zu Hause\n"), "de")):
        row, verdict = judged(on, document, language=language)
        assert row["text"] == document.text and row["c4_few_words"] is row["lines_left"] is None
        assert verdict.step is None
    off = lines_step(data_config())
    assert not off.rules and not off.edits
    row, _ = judged(off, raw("Home\n"), language="en")
    assert row["text"] == "Home\n" and row["lines_left"] is None


LINES = st.sampled_from([
    "", SENTENCE, "Home", "3 likes", "Sign-in now", "go on. read more...", "LOUD TEXT", "see [1] the [2] north of it.",
    "a b c d e f [3]", "  indented line of some words.", "-", "日本語の文。",
])  # fmt: skip


@given(st.lists(LINES, max_size=12), st.booleans(), st.booleans())
def test_what_is_left_is_normalised_text_of_the_lines_there_were(lines: list[str], c4: bool, refinedweb: bool) -> None:
    text, _ = normalise("\n".join(lines), "text")
    cleaner = LineCleaner(
        C4LinesConfig(end_marks=(), min_words=2) if c4 else None, RefinedWebLinesConfig() if refinedweb else None
    )
    found = cleaner.clean(text)
    assert normalise(found.text, "text")[0] == found.text
    before, after = (sum(bool(line.strip()) for line in part.split("\n")) for part in (text, found.text))
    if found.lines_left:
        cut = found.changed["c4_citation"] + found.changed["refinedweb_pattern"]
        least = before - found.changed.total()
        assert after == found.lines_left and least <= after <= least + cut
    else:
        assert found.text == text and before <= found.changed.total()


def test_why_shows_what_is_cut() -> None:
    step = lines_step(data_config(lines={"c4": {}}))
    row = cleaned(f"{SENTENCE}\nHome\n", c4={})[0] | {"reasons": [], "cuts": [], "step": "", "language": "en"}
    (passed,) = (found for found in passages(Fate("kept", row), [step]) if found.step == "lines")
    assert "bytes_cut 5" in passed.measured and "c4_no_end_mark 1" in passed.measured
