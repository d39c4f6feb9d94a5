"""Prose, counted: one pass over a text's characters finds its words, lines and paragraphs.

What must hold: a word is what `str.split` makes; a line ends at a line feed and a paragraph at an empty line, as all do
in normalised text. Line feeds around the text are no part of it. Only integers leave this file, and
`prose_measures.py` divides them.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.measures.character_classes import ALPHABETIC, BULLET, ELLIPSIS, SOLID, SPACE, TERMINAL
from lifecycle.data.measures.compiled_characters import decoded
from lifecycle.data.measures.compiled_repeats import PART, count_ngrams, repeats
from lifecycle.data.mixing import MIX, MULTIPLIER

# What is counted of a text. `tokens` are all words, `words` those that are more than marks; `stop_words` are bits.
TALLY = np.dtype([(name, np.int64) for name in (
    "chars", "line_feeds", "tokens", "words", "word_chars", "alphabetic", "stop_words", "sentences", "hashes",
    "ellipses", "braces", "lines", "short_lines", "punctuated_lines", "bullet_lines", "ellipsis_lines",
    "repeated_lines", "repeated_line_chars", "paragraphs", "repeated_paragraphs", "repeated_paragraph_chars",
)])  # fmt: skip
# The line that is read: `last` has the classes of its last character but for blanks, `dots` counts full stops there.
_LINE = np.dtype([("key", np.uint64)] + [(name, np.int64) for name in ("chars", "words", "last", "dots")])
_DOT, _HASH, _BRACE, _NEWLINE = ord("."), ord("#"), ord("{"), ord("\n")
_HALF = np.uint64(32)


@compiled
def measure(
    data: Any, offsets: Any, chosen: Any, classes: Any, stop_words: Any, lists: Any, short_line: int,
    longest_top: int, tallies: Any, ngrams: Any,
) -> None:  # fmt: skip
    """Fills in a row of `tallies` (`TALLY`) and one of `ngrams` (see `count_ngrams`) for each text that is chosen;
    `lists`: the number of each text's list among the `StopWords`."""
    most = 0
    for text in range(len(chosen)):
        most = max(most, offsets[text + 1] - offsets[text])
    most = most // 2 + 2  # words or lines; the parts of the arrays that no text needs are never touched
    words, lines, paragraphs = np.empty(most, PART), np.empty(most, PART), np.empty(most, PART)
    words[0].chars = 0
    table = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int32), np.empty(4 * most, np.int32)
    seen, line = np.empty(most, np.int32), np.empty(1, _LINE)
    for text in range(len(chosen)):
        if chosen[text]:
            tally, own = tallies[text], data[offsets[text] : offsets[text + 1]]
            stops = _stops(stop_words, lists[text])
            _read_text(own, classes, stops, short_line, words, lines, paragraphs, line[0], tally)
            tally.repeated_lines, tally.repeated_line_chars = repeats(lines, tally.lines, table)
            found = repeats(paragraphs, tally.paragraphs, table)
            tally.repeated_paragraphs, tally.repeated_paragraph_chars = found
            count_ngrams(words, tally.tokens, longest_top, table, seen, ngrams[text])


@inlined
def _stops(stop_words: Any, number: int) -> Any:
    """The words of a list, the bits of their lengths, and what characters count as."""
    begin, end = stop_words.begins[number], stop_words.begins[number + 1]
    return stop_words.hashes[begin:end], stop_words.lengths[number], stop_words.folded


@compiled
def _read_text(
    text: Any, classes: Any, stops: Any, short_line: int, words: Any, lines: Any, paragraphs: Any, line: Any,
    tally: Any,
) -> None:  # fmt: skip
    """Fills in the tally, and hashes: of words, with the characters of those before, of lines and of paragraphs."""
    at, end = 0, len(text)
    while at < end and text[at] == _NEWLINE:
        at += 1
    while end > at and text[end - 1] == _NEWLINE:
        end -= 1
    paragraph, chars, has_more = MIX, 0, at < end
    while has_more:
        at, has_more = _read_line(text, at, end, classes, stops, words, line, tally)
        if line.words:
            _count_line(line, short_line, lines[tally.lines], tally)
            paragraph = (paragraph ^ line.key) * MULTIPLIER
            chars += line.chars + 1
        if chars and not (line.words and has_more):
            paragraphs[tally.paragraphs].key = paragraph ^ (paragraph >> _HALF)
            paragraphs[tally.paragraphs].chars = chars - 1
            tally.paragraphs += 1
            paragraph, chars = MIX, 0
    tally.chars += tally.line_feeds


@compiled
def _read_line(text: Any, at: int, end: int, classes: Any, stops: Any, words: Any, line: Any, tally: Any) -> Any:
    """Reads a line word by word; returns the place behind it, and whether another one follows."""
    stop_words, lengths, folded = stops
    first = num = tally.tokens
    key, chars, last, dots, is_sentence_over, has_more = MIX, 0, 0, 0, False, False
    while at < end and not has_more:
        code, behind = decoded(text, at)
        kind = np.int64(classes[code])
        if kind & SPACE:
            at, has_more = behind, code == _NEWLINE
            if not has_more:
                key = (key ^ np.uint64(code)) * MULTIPLIER
                chars += 1
            continue
        tally.bullet_lines += num == first and kind & BULLET != 0
        begin = at
        at, word, solid, marks, kinds, tail, last, dots = _read_word(text, at, end, classes, tally)
        key = (key ^ word) * MULTIPLIER
        chars += solid + marks
        words[num].key = word
        words[num + 1].chars = words[num].chars + solid + marks
        num += 1
        tally.alphabetic += kinds & ALPHABETIC != 0
        if solid:
            tally.words += 1
            tally.word_chars += solid + marks
            tally.sentences += is_sentence_over
            if lengths >> min(solid, 63) & 1:
                tally.stop_words |= _stop_word(text, begin, at, classes, folded, stop_words)
        is_sentence_over = tail & TERMINAL != 0 or (is_sentence_over and not solid)
    line.key, line.chars, line.words, line.last, line.dots = key ^ (key >> _HALF), chars, num - first, last, dots
    tally.tokens = num
    tally.chars += chars
    tally.line_feeds += has_more
    return at, has_more


@inlined
def _read_word(text: Any, at: int, end: int, classes: Any, tally: Any) -> Any:
    """Reads a word; returns the place behind it, its hash, how many solid characters and marks it has, the classes of
    all, of the marks at its end, and of the last, and how many full stops it ends with."""
    key, solid, marks, kinds, tail, last, dots = MIX, 0, 0, 0, 0, 0, 0
    while at < end:
        code, behind = decoded(text, at)
        kind = np.int64(classes[code])
        if kind & SPACE:
            break
        key = (key ^ np.uint64(code)) * MULTIPLIER
        at, last = behind, kind
        kinds |= kind
        if kind & SOLID:
            solid, tail, dots = solid + 1, 0, 0
        else:
            marks, tail, dots = marks + 1, tail | kind, dots + 1 if code == _DOT else 0
            tally.hashes += code == _HASH
            tally.braces += code == _BRACE
            tally.ellipses += kind & ELLIPSIS != 0 or (dots > 0 and dots % 3 == 0)
    return at, key ^ (key >> _HALF), solid, marks, kinds, tail, last, dots


@inlined
def _count_line(line: Any, short_line: int, part: Any, tally: Any) -> None:
    part.key, part.chars = line.key, line.chars
    tally.lines += 1
    tally.sentences += 1
    tally.short_lines += line.chars <= short_line
    tally.punctuated_lines += line.last & TERMINAL != 0
    tally.ellipsis_lines += line.last & ELLIPSIS != 0 or line.dots >= 3


@compiled
def _stop_word(text: Any, at: int, end: int, classes: Any, folded: Any, stop_words: Any) -> int:
    """The bit of the stop word that a word is, in any case and without the marks around it; 0 if it is none."""
    key, word, is_inside = MIX, MIX, False
    while at < end:
        code, at = decoded(text, at)
        is_solid = classes[code] & SOLID != 0
        is_inside |= is_solid
        if is_inside:
            key = (key ^ np.uint64(folded[code])) * MULTIPLIER
        if is_solid:
            word = key
    word ^= word >> _HALF
    for number in range(len(stop_words)):
        if stop_words[number] == word:
            return 1 << number
    return 0
