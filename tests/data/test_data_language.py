"""Language: known texts, borders of the settings, and that no network is touched."""

import socket
from typing import Any

import pytest
from document_tables import Verdict, data_config, judged, raw

from lifecycle.data.language import detect_language, language_step

TEXTS = {
    "en": "The harbour lies to the north of the old town and was built in three stages.",
    "de": "Der Hafen liegt nördlich der Altstadt und wurde in drei Abschnitten gebaut.",
    "fr": "Le port se trouve au nord de la vieille ville et fut construit en trois étapes.",
    "ja": "港は旧市街の北にあり、三段階で建設された。",
    "ru": "Порт расположен к северу от старого города и строился в три этапа.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_known_languages(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found, score = detect_language(TEXTS[language])
    assert found == language
    assert 0.5 < score <= 1


def test_more_than_the_first_line_counts() -> None:
    assert detect_language("LICENCE 2024 Copyright (c) Max & Cie\n\n" + TEXTS["fr"] * 5)[0] == "fr"


def test_texts_without_words() -> None:
    assert detect_language("123 --- 456\n") == ("und", 0.0)
    assert detect_language("") == ("und", 0.0)


def tag(text: str, format: str = "text", path: str = "p", **settings: object) -> tuple[dict[str, Any], Verdict]:
    return judged(language_step(data_config(language=settings)), raw(text, format, path))


def test_only_the_kept_languages_stay_and_code_always_does() -> None:
    assert tag(TEXTS["de"])[1].step is None
    row, verdict = tag(TEXTS["de"], keep=["en"])
    assert (verdict.step, verdict.reason, row["language"]) == ("language", "language_de", "de")
    assert tag(TEXTS["en"], keep=["en"])[1].step is None
    row, verdict = tag("x = 1", "code", "a/b.PY", keep=["en"])
    assert (row["language"], row["language_score"], verdict.step) == ("python", None, None)
    assert tag("x = 1", "code", "rows.jsonl:3", keep=["en"])[1].step is None


def test_unsure_is_undetermined() -> None:
    row, verdict = tag("foo bar baz qux", min_score=0.99, keep=["en"])
    assert (row["language"], verdict.reason) == ("und", "language_und")
    assert row["detected_language"] != "und" and row["language_score"] < 0.99
    assert verdict.detail == f"{row['detected_language']} with score {row['language_score']:.2f}"
