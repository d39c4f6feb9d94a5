"""Stop words: lists for languages, found in any case and between marks, beside a plain search."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from document_tables import Verdict, data_config, judged, raw
from hypothesis import given
from hypothesis import strategies as st
from plain_quality import folded, has_word

from lifecycle.core.config import ConfigError
from lifecycle.data.measures.prose_measures import prose_measures
from lifecycle.data.measures.quality import quality_step
from lifecycle.data.measures.stop_words import stop_words

WORDS = ("the", "ß", "über", "ÜBER", "του", "της", "qu'on", "déjà", "यह", "co-operate", "1990", "a" * 40)
PIECES = (*WORDS, "Της", "ΤΗΣ", "Déjà", "t'he", "the1", "over", "İ", "x" * 70)
TEXTS = st.lists(
    st.tuples(st.sampled_from(("", "(", "„", "…")), st.sampled_from(PIECES), st.sampled_from(("", ".", "?”", "!!")))
    .map("".join)
    .flatmap(lambda word: st.sampled_from((word, word.upper(), word.title()))),
    max_size=12,
).map(" ".join)
LIMITS = {
    "gopher": {"min_words": None, "min_mean_word_length": None, "min_stop_words": 2},
    "repetition": None,
    "stop_words": {"de": ["über", "und", "der"], "ru": ["и", "в"]},
}


def judge(text: str, language: str) -> tuple[dict[str, Any], Verdict]:
    return judged(quality_step(data_config(quality=LIMITS)), raw(text), language=language)


@given(TEXTS, st.lists(st.sampled_from(WORDS), min_size=1, unique_by=folded))
def test_found_words_equal_those_of_a_plain_search(text: str, own: list[str]) -> None:
    lists = stop_words((("en", ("never",)), ("de", tuple(own))))
    texts = pa.array([text, "never mind", text])
    found = prose_measures(texts, np.ones(3, bool), 30, lists, np.array([1, 0, 2]))["stop_word_count"].tolist()
    assert found == [sum(has_word(text, word) for word in own), 1, 0]


def test_a_language_has_its_own_list_and_others_none() -> None:
    row, verdict = judge("ÜBER das Haus; und „der“ Garten", "de")
    assert row["stop_word_count"] == 3 and verdict.step is None
    _, verdict = judge("Der Hafen", "de")
    assert (verdict.reason, verdict.detail) == ("stop_words", "1 of 3 stop words")
    assert judge("И в доме", "ru")[1].step is None
    row, verdict = judge("The harbour of the town", "en")
    assert row["stop_word_count"] is None and verdict.step is None  # its list was left out


def test_a_list_may_have_64_words() -> None:
    words = tuple(f"w{number}x" for number in range(64))
    found = prose_measures(
        pa.array([" ".join(words)]), np.ones(1, bool), 30, stop_words((("en", words),)), np.zeros(1, np.int64)
    )
    assert found["stop_word_count"].tolist() == [64]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"ja": ["の", "に"]}, "'ja' has no blanks between words"),
        ({"dee": ["der", "die"]}, "'dee' is no language .* did you mean 'de'"),
        ({"de": ["der", "die,"]}, "'die,' is in no text"),
        ({"de": ["der", "auf dem"]}, "'auf dem' is in no text"),
        ({"de": ["der"]}, "stop_words has 1 for 'de' and gopher asks for 2"),
        ({"de": ["der", "Der"]}, "'Der' is there twice"),
        ({"de": []}, "at least 1 item"),
        ({"de": [f"w{number}" for number in range(65)]}, "at most 64 items"),
    ],
)
def test_lists_that_no_text_can_have_are_refused(lists: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_config(quality={"stop_words": lists})
