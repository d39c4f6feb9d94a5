"""Limits that differ by language: which rules a document meets, in which order, and where they are shown."""

from typing import Any

import pyarrow as pa
import pytest
from document_tables import data_config, numbered, raw, verdicts
from hypothesis import given
from hypothesis import strategies as st
from test_data_quality import EDGES, SOUND

from lifecycle.core.config import ConfigError
from lifecycle.data.inspecting.distributions import Score, scores_of
from lifecycle.data.inspecting.fate import Fate, passages
from lifecycle.data.measures.quality import quality_step
from lifecycle.data.measures.steps import DocumentStep, run_steps
from lifecycle.data.reading.raw import raw_batch
from lifecycle.data.selecting.selection import select

FAMILIES: dict[str, Any] = {
    "gopher": {"min_words": 20, "max_bullet_lines": None}, "repetition": {"max_duplicate_lines": 0.5},
    "c4": {"min_sentences": 2}, "fineweb": {}, "starcoder": {}, "bigcode": None,
}  # fmt: skip
TEXTS = (*EDGES.values(), SOUND, f"{SOUND}\n{SOUND}", " ".join(SOUND.split()[:30]), "- a\n- a\n- a")
LANGUAGES = ("en", "de", "ja", "und")


def step_of(**quality: Any) -> DocumentStep:
    return quality_step(data_config(quality=quality))


def measured(step: DocumentStep, documents: list[tuple[str, str]]) -> pa.Table:
    """Texts with their languages, and the columns of the step."""
    batch = raw_batch([raw(text) for text, _ in documents])
    batch = batch.append_column("language", pa.array([language for _, language in documents]))
    return numbered(pa.Table.from_batches([run_steps(batch, [step.measure])]))


def reasons(documents: list[tuple[str, str]], **quality: Any) -> list[list[str]]:
    step = step_of(**quality)
    table = measured(step, documents)
    found = verdicts(table, select(table, [step]))
    return [[f"{entry['reason']}: {entry['detail']}" for entry in verdict.reasons or ()] for verdict in found]


SHORT = "The harbour of the town lies here to the north. It is old."
GOPHER = {"gopher": {"min_words": 20}, "repetition": None}


def test_a_document_meets_the_limits_of_its_language() -> None:
    documents = [(SHORT, "en"), (SHORT, "de"), (SHORT, "fr"), ("Hafen", "de")]
    found = reasons(documents, **GOPHER, languages={"de": {"gopher": {"min_words": 10}}})
    few = "too_few_words: 13 words < 20"
    assert found == [[few], [], [few], ["too_few_words: 1 words < 10 (language de)"]]
    stricter = {"en": {"gopher": {"min_stop_words": 6, "min_words": None}}}
    found = reasons(documents, **GOPHER, languages=stricter)
    assert found[:2] == [["stop_words: 3 of 8 stop words (language en)"], [few]]


def test_a_family_may_be_off_or_on_for_one_language() -> None:
    documents = [("one. two", "en"), ("one. two", "de"), ("one. two", "fr")]
    off = reasons(documents, gopher=None, repetition=None, c4={}, languages={"de": {"c4": None}})
    few = "too_few_sentences: 2 sentences < 3"
    assert off == [[few], [], [few]]
    on = reasons(documents, gopher=None, repetition=None, languages={"de": {"c4": {}}, "fr": {}})
    assert on == [[], [f"{few} (language de)"], []]


def test_reasons_keep_the_order_of_the_rules() -> None:
    found = reasons([("# # #\n# # #", "de")], languages={"de": {"gopher": {"max_hashes_per_word": 0.2}}})[0]
    assert [reason.partition(":")[0] for reason in found] == [
        "too_few_words", "mean_word_length", "hashes_per_word", "alphabetic_words", *["repetition"] * 6,
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(LANGUAGES)), min_size=1, max_size=6),
    st.sets(st.sampled_from(LANGUAGES)),
    st.booleans(),
)
def test_languages_that_repeat_the_settings_change_nothing(
    documents: list[tuple[str, str]], languages: set[str], in_words: bool
) -> None:
    own = {name: FAMILIES[name] for name in ("gopher", "repetition", "c4", "fineweb")} if in_words else {}
    plain, repeated = step_of(**FAMILIES), step_of(**FAMILIES, languages=dict.fromkeys(languages, own))
    table = measured(plain, documents)
    assert select(table, [repeated]).equals(select(table, [plain])) and repeated.rules == plain.rules


def test_settings_that_mean_the_same_are_the_same_key() -> None:
    quality = {"gopher": {"min_words": 20}}
    one = data_config(quality=quality | {"languages": {"de": {}}})
    for own in ({"gopher": {}}, {"gopher": {"min_words": 20}}, {"repetition": {}, "c4": None}):
        assert data_config(quality=quality | {"languages": {"de": own}}).selection() == one.selection()
    other = data_config(quality=quality | {"languages": {"de": {"gopher": {"min_words": 50}}}})
    assert other.selection() != one.selection() and other.tagging() == one.tagging()
    assert data_config(quality=other.quality.plain()).selection() == other.selection()


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({"dee": {}}, "'dee' is no language that documents are found to be in; did you mean 'de'"),
        ({"de": {"gophr": {}}}, "quality.languages.de.gophr: no such setting; did you mean 'gopher'"),
        ({"de": {"gopher": {"min_wrds": 3}}}, "de.gopher.min_wrds: no such setting; did you mean 'min_words'"),
        ({"de": {"gopher": {"max_words": 19}}}, "languages.de.gopher: min_words is above max_words"),
        ({"en": {"gopher": {"min_stop_words": 9}}}, "stop_words has 8 for 'en' and gopher asks for 9"),
        ({"de": None}, "languages.de"),
        (["de"], "languages: .*dictionary"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(languages: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_config(quality={"gopher": {"min_words": 20}, "languages": languages})


def test_limits_are_shown_with_their_languages() -> None:
    step = step_of(**GOPHER, languages={"de": {"gopher": {"min_words": 10}}})
    scores = [score for score in scores_of([step]) if score.column == "word_count"]
    both = ("too_few_words", "too_many_words")
    assert [score.name for score in scores] == ["word_count, languages but for de", "word_count, language de"]
    assert scores == [
        Score("word_count", None, 20, 100_000, both, ("de",)), Score("word_count", "de", 10, 100_000, both),
    ]  # fmt: skip
    table = measured(step, [(SHORT, "en"), (SHORT, "de")])
    counts = [score.values(table.to_batches()[0]).tolist() for score in scores]
    assert str(counts) == "[[13.0, nan], [nan, 13.0]]"

    def shown(row: dict[str, Any]) -> list[str]:
        fate = Fate("kept", row | {"reasons": None, "cuts": None, "step": "quality"})
        return [line for passage in passages(fate, [step]) for line in passage.measured]

    in_english, in_german = map(shown, table.to_pylist())
    assert in_english[:2] == ["word_count 13 (at least 20)", "word_count 13 (at most 100,000)"]
    assert "stop_word_count 3 (at least 2, language en)" in in_english
    assert in_german[:2] == ["word_count 13 (at least 10, language de)", "word_count 13 (at most 100,000)"]
