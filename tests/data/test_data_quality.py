"""Quality rules of prose: each at its border, measures against a slow and plain count, texts that are hard on both."""

import string
import time
from typing import Any

import numpy as np
import plain_quality
import pyarrow as pa
import pytest
from document_tables import Verdict, data_config, judged, raw
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, Section, validate
from lifecycle.data.measures.character_classes import SOLID, TERMINAL, character_classes
from lifecycle.data.measures.prose_measures import OF_LINES, OF_WORDS, Measures, prose_measures
from lifecycle.data.measures.quality import MeasureQuality, quality_rules, quality_step
from lifecycle.data.measures.quality_config import QualityConfig
from lifecycle.data.measures.stop_words import stop_words

SOUND = (
    "The harbour lies to the north of the old town and was built in three stages. Ships that have a draught of more "
    "than nine metres wait outside for the tide. Pilots board with a small boat near the second buoy. In winter ice "
    "may close this passage for weeks, so goods travel by rail from the southern port. Nobody who works there would "
    "call it quiet, yet visitors find a calm place between cranes, gulls and stacked timber."
)
NONE = {"gopher": None, "repetition": None, "starcoder": None}
# Texts that are hard on rules, and the reasons for which all families remove them as English.
EDGES = {
    "empty": "",
    "blanks": " \n \n",
    "one word": "word",
    "no blanks": "word" * 500,
    "chinese": "港口位于老城以北分三个阶段建成。吃水超过九米的船只在外面等待涨潮。",
    "arabic": "يقع الميناء شمال المدينة القديمة وقد بني على ثلاث مراحل. هل تنتظر السفن المد؟",
    "symbols": "# * - … ... §§ {} () ~~ # # …",
    "one line": SOUND.replace("\n", " ") * 400,
    "emoji": "😀 🎉 👍🏽 " * 9,
}


def judge(text: str, quality: dict[str, Any] | None = None, language: str = "en") -> Verdict:
    return judged(quality_step(data_config(quality=quality or {})), raw(text), language=language)[1]


def reasons(text: str, quality: dict[str, Any], language: str = "en") -> list[str]:
    return [entry["reason"] for entry in judge(text, NONE | quality, language).reasons or ()]


def words(count: int) -> str:
    return " ".join(SOUND.split()[:count])


def test_sound_prose_passes_all_families() -> None:
    assert judge(SOUND).step is None
    assert judge(SOUND, {"c4": {}, "fineweb": {}, "bigcode": {}}).step is None


@pytest.mark.parametrize(
    ("fails", "passes", "reason"),
    [
        (words(49) + " -- *", words(50), "too_few_words"),
        (SOUND + " #" * 9, SOUND + " #" * 8, "hashes_per_word"),
        ("… " * 4 + "... " * 5 + SOUND, "… " * 4 + "... " * 4 + SOUND, "ellipses_per_word"),
        ("- " + SOUND.replace(". ", ".\n• "), SOUND.replace(". ", ".\n- "), "bullet_lines"),
        (SOUND.replace(". ", "...\n", 2), SOUND.replace(". ", ".\n").replace(".\n", "…\n", 1), "ellipsis_lines"),
        (SOUND + " 1990" * 20, SOUND + " 1990" * 18, "alphabetic_words"),
    ],
)
def test_gopher_s_rules_at_their_border(fails: str, passes: str, reason: str) -> None:
    assert reasons(fails, {"gopher": {}}) == [reason]
    assert reasons(passes, {"gopher": {}}) == []


def test_mean_word_length_and_maximum() -> None:
    limits = {"gopher": {"min_words": None, "max_words": 3, "min_stop_words": None}}
    assert reasons("ab ab ab", limits) == ["mean_word_length"]
    assert reasons("abc - abc abc", limits | {"gopher": limits["gopher"] | {"min_alphabetic_words": 0.7}}) == []
    assert reasons("abcdefghij abcdefghijk", limits) == ["mean_word_length"]
    assert reasons("abc abc abc abc", limits) == ["too_many_words"]


def test_stop_words_are_asked_of_english_only() -> None:
    limits = {"gopher": {"min_words": 0}}
    text = "Der Hafen liegt nördlich der Altstadt und wurde gebaut"
    assert reasons(text, limits) == ["stop_words"]
    assert reasons(text, limits, "de") == []
    assert reasons("Harbour “of” stone; THE, end.", limits) == []
    assert reasons("Theatre often, 'thé' then the", limits) == ["stop_words"]


def test_languages_without_blanks_are_not_judged_by_words() -> None:
    assert judge("港は旧市街の北にあり、三段階で建設された。", language="ja").step is None
    assert judge("港\n港\n港\n港", language="ja").reason == "repetition"


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (SOUND + "\n" + SOUND, ["duplicate_lines", "duplicate_line_chars"]),
        (SOUND + "\n\n" + SOUND, ["duplicate_paragraphs", "duplicate_paragraph_chars"]),
        (SOUND + " buy now" * 20, ["top_2gram_chars"]),
        (SOUND + " come and buy it right now" * 9, ["duplicate_5gram_chars"]),
        (SOUND[:200] + " come and buy it right now while it is still fresh" * 2, ["duplicate_10gram_chars"]),
    ],
)
def test_repetition(text: str, columns: list[str]) -> None:
    verdict = judge(text)
    assert verdict.reason == "repetition" and verdict.detail is not None
    assert all(f"{column} 0." in verdict.detail for column in columns)
    assert judge(text, {"repetition": None}).step is None
    only = {f"max_{column}": 1.0 for column in columns}
    assert not any(f"{column} 0." in (judge(text, {"repetition": only}).detail or "") for column in columns)


def test_what_occurs_once_is_no_repetition() -> None:
    assert reasons("three short words", {"repetition": {}}) == []


@pytest.mark.parametrize(
    ("fails", "passes", "reason"),
    [
        ("One. Two", "One. Two? (Three) four", "too_few_sentences"),
        ("a. b. c. {", "a. b. c. (", "curly_brackets"),
        ("a. b. Lorem ipsum.", "a. b. Ipsum lorem.", "lorem_ipsum"),
    ],
)
def test_c4_s_rules(fails: str, passes: str, reason: str) -> None:
    assert reasons(fails, {"c4": {}}) == [reason]
    assert reasons(passes, {"c4": {}}) == []


@pytest.mark.parametrize(
    ("fails", "passes", "reason"),
    [
        ("\n".join(f"{n} and {SOUND[: 40 + n]}" for n in range(9)), f"{SOUND}\n{SOUND[:50]}", "punctuated_lines"),
        ("\n".join(f"{n} {SOUND[:22]}." for n in range(10, 13)), SOUND + "\nYes, it is.", "short_lines"),
        (f"{SOUND}\nIt is so.\nIt is so.", f"{SOUND}\nIt is.\n", "duplicate_chars"),
        ("\n".join(f"{n} l{'g' * 40}." for n in range(9)), f"{SOUND}\nA {'g' * 40} word.", "line_breaks_per_word"),
    ],
)
def test_fineweb_s_rules(fails: str, passes: str, reason: str) -> None:
    assert reason in reasons(fails, {"fineweb": {}})
    assert reasons(passes, {"fineweb": {}}) == []


def test_the_length_of_a_short_line_is_a_setting() -> None:
    assert reasons(SOUND[:90] + ".", {"fineweb": {}}) == []
    assert reasons(SOUND[:90] + ".", {"fineweb": {}, "short_line": 91}) == ["short_lines"]


def test_every_rule_that_fails_is_a_reason() -> None:
    verdict = judge("# # #\n# # #")
    assert (verdict.step, verdict.reason) == ("quality", "too_few_words")
    assert verdict.reasons is not None
    assert [entry["reason"] for entry in verdict.reasons] == [
        "too_few_words", "mean_word_length", "hashes_per_word", "alphabetic_words", "stop_words", *["repetition"] * 6,
    ]  # fmt: skip
    details = [entry["detail"] for entry in verdict.reasons]
    assert details[:3] == ["0 words < 50", "mean_word_length 0 outside (3.0, 10.0)", "hashes_per_word 1 > 0.1"]
    assert verdict.detail == "; ".join(details)


def test_each_threshold_is_a_rule_of_its_own_and_none_asks_nothing() -> None:
    every = validate(QualityConfig, {"c4": {}, "fineweb": {}, "bigcode": {}})
    families = {name: dict(limits) for name, limits in every if isinstance(limits, Section)}
    rules = list(quality_rules(every))
    assert len({(rule.column, rule.low, rule.high) for rule in rules}) == len(rules)
    assert {rule.column for rule in rules} <= set(MeasureQuality.columns.names)
    bounds = sum(np.isfinite([rule.low, rule.high]).sum() for rule in rules)
    assert bounds == sum(map(len, families.values()))
    nothing = validate(QualityConfig, {name: dict.fromkeys(limits) for name, limits in families.items()})
    assert not list(quality_rules(nothing))


def test_settings_that_remove_everything_are_an_error() -> None:
    with pytest.raises(ConfigError, match="min_words is above max_words"):
        validate(QualityConfig, {"gopher": {"min_words": 9, "max_words": 3}})


ENGLISH = stop_words(tuple(QualityConfig().stop_words.items()))


def measured(texts: pa.Array) -> Measures:
    """The measures of English prose."""
    return prose_measures(texts, np.ones(len(texts), bool), 30, ENGLISH, np.zeros(len(texts), np.int64))


def scores_of(texts: list[str]) -> list[dict[str, float]]:
    found = measured(pa.array(texts, pa.string()))
    assert {*found} == {*OF_LINES, *OF_WORDS}
    return [{name: column[at].item() for name, column in found.items()} for at in range(len(texts))]


PIECES = [
    "the", "The", "THAT.", "of", "a", "bb", "ccc", "1990", "naïve", "港", "。", "؟", "#", "...", "…", "....", "•", "-",
    "* ", "{", "Lorem ipsum", "😀", "(with)", "\u201cbe\u201d", " ", "\u3000", "\xa0", "\t", "\n", "\n\n", "\n \n",
    "\n\n\n", "\r\n", "\x0b", "Read the rest of the story here.\n", "to be or not to be ",
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join), max_size=4))
def test_compiled_measures_equal_plain_ones(texts: list[str]) -> None:
    """Of several texts at once; to the last bit."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    assert scores_of(texts) == [plain_quality.prose_scores(text, 30) for text in texts]


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=60).map(" ".join))
def test_repeated_ngrams_equal_plain_counts(text: str) -> None:
    assert scores_of([text]) == [plain_quality.prose_scores(text, 30)]


def test_texts_that_are_hard_on_rules() -> None:
    assert scores_of([*EDGES.values()]) == [plain_quality.prose_scores(text, 30) for text in EDGES.values()]
    kept = [name for name, text in EDGES.items() if judge(text, {"repetition": None, "fineweb": {}}).step is None]
    assert kept == ["one line"]


@pytest.mark.parametrize(
    ("word", "size"),
    [("the harbour of ", 10_000_000), ("x", 10_000_000), ("港", 2_000_000), ("# ", 2_000_000), ("a\n", 2_000_000)],
)
def test_large_texts_take_as_long_per_byte_as_small_ones(word: str, size: int) -> None:
    def seconds(size: int) -> float:
        texts = pa.array([word * (size // len(word.encode()))])
        start = time.thread_time()
        measured(texts)
        return time.thread_time() - start

    seconds(1000)
    assert min(seconds(size) for _ in range(2)) < 40 * min(seconds(size // 10) for _ in range(3))  # not 100


def test_classes_of_characters() -> None:
    classes = character_classes()
    solid = {chr(code) for code in np.flatnonzero(classes & SOLID)}
    assert set("aЖ港5§•") <= solid and not solid & {*string.punctuation, *string.whitespace, *"…“”、。\x00\x7f"}
    terminal = {chr(code) for code in np.flatnonzero(classes & TERMINAL)}
    assert len(terminal) == 159 and set(".?!。؟।።។") <= terminal and not terminal & {*solid, *"…,;:"}
