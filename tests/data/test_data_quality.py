"""Quality rules: each at its border, against a slow and plain count of the same measures."""

import plain_quality
import pytest
from document_tables import Verdict, data_config, judged, raw
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.config import QualityConfig
from lifecycle.data.prose_measures import COUNTS, OF_LINES, OF_WORDS, prose_measures
from lifecycle.data.quality import code_scores, quality_step

SOUND = (
    "The harbour lies to the north of the old town and was built in three stages. Ships that have a draught of more "
    "than nine metres wait outside for the tide. Pilots board with a small boat near the second buoy. In winter ice "
    "may close this passage for weeks, so goods travel by rail from the southern port. Nobody who works there would "
    "call it quiet, yet visitors find a calm place between cranes, gulls and stacked timber."
)


def judge(text: str, config: QualityConfig | None = None, format: str = "text", language: str = "en") -> Verdict:
    settings = (config or QualityConfig()).plain()
    return judged(quality_step(data_config(quality=settings)), raw(text, format), language=language)[1]


def words(count: int) -> str:
    return " ".join(SOUND.split()[:count])


def test_sound_prose_passes() -> None:
    assert judge(SOUND).step is None


@pytest.mark.parametrize(
    ("fails", "passes", "reason"),
    [
        (words(49), words(50), "too_few_words"),
        (SOUND + " #" * 9, SOUND + " #" * 6, "symbol_to_word_ratio"),
        ("- " + SOUND.replace(". ", ".\n- "), SOUND.replace(". ", ".\n- "), "bullet_lines"),
        (SOUND.replace(". ", "...\n", 2), SOUND.replace(". ", ".\n").replace(".\n", "...\n", 1), "ellipsis_lines"),
        (SOUND + " 1990" * 22, SOUND + " 1990" * 3, "alphabetic_words"),
    ],
)
def test_prose_rules_at_their_border(fails: str, passes: str, reason: str) -> None:
    only = QualityConfig(disable=("repetition",))
    verdict = judge(fails, only)
    assert (verdict.step, verdict.reason) == ("quality", reason)
    assert judge(passes, only).reason != reason


def test_mean_word_length_and_maximum() -> None:
    config = QualityConfig(min_words=0, max_words=3, disable=("repetition", "stop_words", "alphabetic_words"))
    assert judge("ab ab ab", config).reason == "mean_word_length"
    assert judge("abc abc abc", config).reason is None
    assert judge("abcdefghij abcdefghijk", config).reason == "mean_word_length"
    assert judge("abc abc abc abc", config).reason == "too_many_words"


def test_stop_words_are_asked_of_english_only() -> None:
    config = QualityConfig(min_words=0, disable=("repetition",))
    text = "Der Hafen liegt nördlich der Altstadt und wurde gebaut"
    assert judge(text, config).reason == "stop_words"
    assert judge(text, config, language="de").step is None
    assert judge("Harbour of stone; THE end.", config).step is None


def test_languages_without_blanks_are_not_judged_by_words() -> None:
    assert judge("港は旧市街の北にあり、三段階で建設された。", language="ja").step is None
    assert judge("港\n港\n港\n港", language="ja").reason == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        SOUND + "\n" + SOUND,
        "\n".join([SOUND, *["Read the rest of the story here."] * 5]),
        SOUND + " buy now" * 30,
    ],
)
def test_repetition(text: str) -> None:
    assert judge(text).reason == "repetition"
    assert judge(text, QualityConfig(disable=("repetition",))).step is None


def test_every_rule_that_fails_is_a_reason() -> None:
    verdict = judge("# # #\n# # #")
    assert (verdict.step, verdict.reason) == ("quality", "too_few_words")
    assert verdict.reasons is not None
    assert [entry["reason"] for entry in verdict.reasons] == [
        "too_few_words", "mean_word_length", "symbol_to_word_ratio", "alphabetic_words", "stop_words",
        *["repetition"] * 6,
    ]  # fmt: skip
    details = [entry["detail"] for entry in verdict.reasons]
    assert details[:3] == ["6 words < 50", "mean_word_length 1.00 outside (3.0, 10.0)", "1.000 > 0.1"]
    assert verdict.detail == "; ".join(details)


def test_code_has_rules_of_its_own() -> None:
    assert judge("x = 1\n", format="code").step is None
    assert judge("x = '" + "a" * 996 + "'\n", format="code").reason == "long_line"
    assert judge("x = 1\nx = '" + "a" * 900 + "'\n" * 2, format="code").reason == "long_mean_line"
    assert judge("{}[]();;\n" * 20 + "abc\n", format="code").reason == "alphanumeric_share"
    assert judge("x = 1\nx = '" + "a" * 900 + "'\n", QualityConfig(disable=("long_mean_line",)), "code").step is None
    assert code_scores("") == {"max_line_length": 0, "mean_line_length": 0, "alphanumeric_share": 0}


def scores_of(texts: list[str]) -> list[dict[str, float]]:
    found = prose_measures(texts)
    names = (*OF_LINES, *OF_WORDS, *COUNTS)
    return [
        dict(zip(names, (*lines, *words, *counts), strict=True)) for lines, words, counts in zip(*found, strict=True)
    ]


PIECES = [
    "the", "The", "THAT.", "of", "a", "bb", "ccc", "1990", "naïve", "港", "#", "...", "…", "....", "•", "-", "* ",
    " ", "\u3000", "\t", "\n", "\n\n", "\n \n", "\r\n", "\x0b", "\u2028", "\x85", "Read the rest of the story here.\n",
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join), max_size=4))
def test_compiled_measures_equal_plain_ones(texts: list[str]) -> None:
    """Of several texts at once; to the last bit."""
    assert scores_of(texts) == [plain_quality.prose_scores(text) for text in texts]


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=40).map(" ".join))
def test_repeated_ngrams_equal_plain_counts(text: str) -> None:
    assert scores_of([text]) == [plain_quality.prose_scores(text)]
