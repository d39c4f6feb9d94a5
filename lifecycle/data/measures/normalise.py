"""Normalisation: one spelling for each text. Applying it twice changes nothing more.

Prose gets its mojibake repaired (only if ftfy's measure says that the text is broken: the repair is slow and not free
of risk), Unicode NFC, plain newlines, no control characters, no hints where a word may break, no ligatures and no
trailing whitespace. Entities of HTML in plain text are what somebody has left who made it of a page, and become the
characters that they stand for; in a text with a `<`, or in a markup language, they may be what it is about. Source code
keeps its characters, since they may matter in a string literal: only newlines, control characters and byte-order marks
are fixed.
"""

import html
import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

import ftfy
import numpy as np
import pyarrow as pa
from ftfy.badness import is_bad

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.steps import DocumentStep

MAX_PASSES = 10  # a repair can expose another layer; the deepest seen in the wild is three layers
_NEWLINES = re.compile(r"\r\n|\r")
_LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff\ufffe\uffff]")
_C1_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")  # also left when Windows-1252 is read as Latin-1: repair first
# Soft hyphens, word joiners and zero-width spaces say where a line may end. Nobody sees them, but a word that has one
# is another word to all that follows: rules, personal data, comparisons, the tokenizer. Two of them are seen: a hyphen
# that a line has ended at, and the space of scripts without another one (Thai, Lao, Tibetan, Burmese, Khmer).
_HINTS = re.compile("\u00ad\n?|\u2060")
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaa7f"
_ZERO_WIDTH_SPACES = re.compile(f"(?<![{_UNSPACED}])\u200b+(?![{_UNSPACED}])")
# What typesetting programs have in a PDF for letters side by side.
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
# References by number, and the names that texts made of pages have. Many others are also variables of C: `p = &num;`.
_ENTITIES = re.compile(
    r"&(?:#(?:\d{2,6}|[xX][0-9a-fA-F]{2,5})|amp|lt|gt|quot|apos|nbsp|[rl]squo|[lrb]dquo|sbquo|[nm]dash|hellip|bull|middot|"
    r"[rl]aquo|copy|reg|trade|deg|euro|pound|szlig|[A-Za-z](?:acute|grave|circ|uml|tilde|cedil|ring|slash|caron)|[Aa]elig|"
    r"oelig|shy|iexcl|iquest);"
)
_BLANK_LINES = re.compile(r"\n{4,}")
AROUND = 8  # characters: what ftfy's measure finds has at most seven, one of them not ASCII

_EDITS = ("replacements", "controls", "entities", "ligatures", "mojibake", "nfc")


@dataclass(frozen=True)
class Normalise:
    """`text`, normalised, and a column for each kind of damage (see `normalise`)."""

    columns: ClassVar[pa.Schema] = pa.schema([("text", pa.string()), *((name, pa.int64()) for name in _EDITS)])

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Column `text`, normalised, with a count for each kind of edit."""
        pairs = zip(batch["text"].to_pylist(), batch["format"].to_pylist(), strict=True)
        rows = [{"text": text, **edits} for text, edits in (normalise(*pair) for pair in pairs)]
        return pa.RecordBatch.from_pylist(rows, schema=self.columns)


def normalise_step(config: DataConfig) -> DocumentStep:
    """The step `normalise`; it has no settings. Lone surrogates were already replaced and counted at reading."""
    del config
    return DocumentStep("normalise", Normalise(), edits=("surrogates", *_EDITS), settings="data.sources")


def normalise(text: str, format: str) -> tuple[str, dict[str, int]]:
    """Returns the normalised text and how often each kind of damage was found.

    `controls` counts removed characters, `replacements` the U+FFFD in the text, `entities` those of HTML, `ligatures`
    what became letters; `mojibake` and `nfc` are 1 for a text that was repaired or composed. The last four are absent
    for source code.
    """
    edits: dict[str, int] = {}
    text = _NEWLINES.sub("\n", text)
    edits["replacements"] = text.count("\ufffd")
    text, edits["controls"] = _CONTROLS.subn("", text)
    if format == "code":
        text, c1 = _C1_CONTROLS.subn("", text)
        edits["controls"] += c1
        return text.strip("\n") + "\n", edits
    edits |= dict.fromkeys(("entities", "ligatures", "mojibake", "nfc"), 0)
    for _ in range(MAX_PASSES):
        text, num_entities = _without_entities(text) if format == "text" else (text, 0)
        edits["entities"] += num_entities
        repaired = _repair(text)
        edits["mojibake"] |= int(repaired != text)
        cleared, num_cleared = _without_hints(repaired)
        edits["controls"] += num_cleared
        spelt, num_ligatures = _without_ligatures(cleared)
        edits["ligatures"] += num_ligatures
        composed = unicodedata.normalize("NFC", spelt)
        edits["nfc"] |= int(composed != spelt)
        text = _tidy(composed)
        if _repair(text) == text and not (format == "text" and _has_entities(text)):
            break
    return text, edits


def _has_entities(text: str) -> bool:
    return "&" in text and "<" not in text and _ENTITIES.search(text) is not None


def _without_entities(text: str) -> tuple[str, int]:
    """A text with the characters that its entities stand for, also those in each other, and how many there were."""
    total = 0
    while _has_entities(text):
        text, count = _ENTITIES.subn(lambda entity: html.unescape(entity[0]), text)
        text, total = _CONTROLS.sub("", text), total + count
    return text, total


def _without_hints(text: str) -> tuple[str, int]:
    """A repaired text without the characters that only a repair tells from letters (`Ã` and a soft hyphen is an `í`),
    and how many there were."""
    if text.isascii():
        return text, 0
    text, num_controls = _C1_CONTROLS.subn("", text)
    num_hints = num_spaces = 0
    if "\u00ad" in text or "\u2060" in text:  # looking for one character is a tenth of a pattern's work
        text, num_hints = _HINTS.subn("", text)
    if "\u200b" in text:
        text, num_spaces = _ZERO_WIDTH_SPACES.subn("", text)
    return text, num_controls + num_hints + num_spaces


def _without_ligatures(text: str) -> tuple[str, int]:
    """A text with the letters of its ligatures, and how many ligatures there were."""
    count = 0 if text.isascii() else sum(text.count(chr(code)) for code in _LIGATURES)
    return (text.translate(_LIGATURES) if count else text), count


def _repair(text: str) -> str:
    if text.isascii() or not is_bad(_suspicious(text)):
        return text
    return _CONTROLS.sub("", ftfy.fix_encoding(text))


def _suspicious(text: str) -> str:
    """The characters of a text that are not ASCII, with those around them, and so all that `is_bad` can find: nine
    tenths of its time go into the rest of an English text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    others = np.flatnonzero(codes > 127)
    if 2 * AROUND * len(others) > len(codes):
        return text
    gaps = np.flatnonzero(np.diff(others) > 2 * AROUND)
    starts = others[np.concatenate([[0], gaps + 1])] - AROUND
    ends = others[np.concatenate([gaps, [-1]])] + AROUND + 1
    return "".join(text[max(start, 0) : end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _tidy(text: str) -> str:
    """Plain newlines, no trailing whitespace, at most two empty lines in a row."""
    text = text if text.isascii() else _LINE_SEPARATORS.sub("\n", text)
    text = "\n".join(map(str.rstrip, text.split("\n")))
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n") + "\n"
