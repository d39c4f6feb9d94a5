"""Normalising: what is repaired, what is left alone, and that a second pass changes nothing."""

import unicodedata

import pytest
from ftfy.badness import is_bad
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.measures.normalise import _suspicious, normalise


@pytest.mark.parametrize(
    ("damaged", "clean", "edit"),
    [
        ("The cafÃ© isnâ€™t open.\n", "The café isn\u2019t open.\n", "mojibake"),
        ("\x93Quoted\x94 in Windows-1252\x85\n", "“Quoted” in Windows-1252…\n", "mojibake"),
        ("a\r\nb\rc\n", "a\nb\nc\n", None),
        ("e\u0301te\u0301\n", "été\n", "nfc"),
        ("a\x00b\x07c\u2028e\x81\n", "abc\ne\n", "controls"),
        ("lone \ufffd half\n", "lone \ufffd half\n", "replacements"),
        ("\ufeffstart  \t\nend", "start\nend\n", "controls"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb\n", None),
        ("Donau\u00addampf\u00ad\nschiff: Gra\u0308\u00adfin\n", "Donaudampfschiff: Gräfin\n", "controls"),
        (
            "you&apos;re &#8220;here&#8221;, R&amp;amp;D &nbsp;&eacute;t&#xe9;&nbsp;\n",
            "you're “here”, R&D \xa0été\n",
            "entities",
        ),
        (
            "\ufb01nal, a\ufb00air, e\ufb03cient \ufb02oor, o\ufb04oad, \ufb05a\ufb06\n",
            "final, affair, efficient floor, offload, stast\n",
            "ligatures",
        ),
        ("in\u200bvisible\u2060, a \u200b \u200b b\u200b\n", "invisible, a   b\n", "controls"),
    ],
)
def test_prose_is_repaired(damaged: str, clean: str, edit: str | None) -> None:
    text, edits = normalise(damaged, "text")
    assert text == clean
    assert edit is None or edits[edit] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "Ça va très bien, à bientôt.\n",
        "Größe: 3 €\n",
        "naïve “quotes” — and dashes…\n",
        "日本語\n",
        "ภาษา\u200bไทย\n",
        "क\u094d\u200dष\n",
    ],
)
def test_sound_text_is_untouched(text: str) -> None:
    sound, edits = normalise(text, "text")
    assert sound == text and not any(edits.values())


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("Write &amp; for an ampersand.\n", "markdown"),
        ("`&lt;` is <, `&amp;` is &\n", "text"),
        ("p = &num; &lt\n", "text"),
    ],
)
def test_entities_that_a_text_explains_are_kept(text: str, format: str) -> None:
    assert normalise(text, format)[0] == text


@given(st.text(alphabet="&amp;lt#38x<ecut\u00ad ", max_size=40))
def test_idempotent_on_entities(text: str) -> None:
    once, _ = normalise(text, "text")
    assert normalise(once, "text")[0] == once


def test_code_keeps_the_characters_of_its_literals() -> None:
    source = 'BROKEN = "cafÃ©"\nDECOMPOSED = "e\u0301"\n\n\n\n\nx = 1  \n'
    assert normalise(source, "code")[0] == source
    assert normalise(source.replace("\n", "\r\n"), "code")[0] == source


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["text", "code", "html"]))
def test_idempotent_and_encodable(text: str, format: str) -> None:
    once, _ = normalise(text, format)
    assert normalise(once, format)[0] == once
    once.encode("utf-8")
    assert "\r" not in once and "\0" not in once


@given(st.text(alphabet="éàüÃ©¢â€™“ \na", max_size=40))
def test_idempotent_on_what_looks_like_mojibake(text: str) -> None:
    once, _ = normalise(text, "text")
    assert normalise(once, "text")[0] == once
    assert unicodedata.is_normalized("NFC", once)


MARKS = "éàüÃÂ©¢â€™“ØÙœ°×²√ВГРСвЂўΒβÄ‚®\xa0 …·«»£"  # noqa: RUF001


@given(st.lists(st.text(alphabet=MARKS, max_size=4) | st.text(alphabet="ab ,.Z\n", max_size=30), max_size=30))
def test_what_is_looked_at_is_all_that_the_measure_finds(parts: list[str]) -> None:
    text = "".join(parts)
    if not text.isascii():
        assert is_bad(_suspicious(text)) == is_bad(text)
