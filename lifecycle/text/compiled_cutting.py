r"""The compiled loops that cut texts into units by a pattern, by Numba: for byte-level vocabularies. Imported late.

Three published patterns are followed by hand, alternative by alternative:

- GPT-2's (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, in its code):
  `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
- Llama 3's (in its `tokenizer.json`): `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
- Qwen 2's, which is Llama 3's with one digit to a unit.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.text.compiled_bpe import Cache, Merges, decoded, encode_unit

OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)  # classes of characters; \r and \n are newlines, other \s spaces
GPT2, LLAMA3, QWEN2 = range(3)
_END = -1  # the class behind a text's end
_BLANK, _QUOTE = 0x20, 0x27
_ANY = 1 << 62  # characters in a run


@inlined
def _class_of(data: Any, at: int, stop: int, classes: Any) -> Any:
    """(the class of the character at a place, the place behind it)."""
    if at >= stop:
        return np.int64(_END), at
    code, after = decoded(data, at)
    return np.int64(classes[code]), after


@compiled
def _run(data: Any, at: int, stop: int, classes: Any, kind: int, most: int) -> int:
    """Where a run of at most so many characters of a class ends."""
    for _ in range(most):
        found, after = _class_of(data, at, stop, classes)
        if found != kind:
            break
        at = after
    return at


@compiled
def _contraction(data: Any, at: int, stop: int, any_case: bool) -> int:
    """The end of 's 't 're 've 'm 'll 'd at a place that has a quote; the place itself if there is none of them."""
    one = np.int64(data[at + 1]) if at + 1 < stop else 0
    two = np.int64(data[at + 2]) if at + 2 < stop else 0
    if any_case:
        if one == 0xC5 and two == 0xBF:  # U+017F, the long s
            return at + 3
        one, two = one | 0x20, two | 0x20
    if one == ord("s") or one == ord("t") or one == ord("m") or one == ord("d"):
        return at + 2
    if (two == ord("e") and (one == ord("r") or one == ord("v"))) or (one == ord("l") and two == ord("l")):
        return at + 3
    return at


@compiled
def _spaces(data: Any, start: int, stop: int, classes: Any, with_newlines: bool) -> int:
    """Where a unit of spaces ends: behind the last newline of them, if that counts; else before the last of them, which
    goes with what follows, if there are several and something follows."""
    at = last = newline = start
    kind, after = _class_of(data, at, stop, classes)
    while kind >= SPACE:
        last, at = at, after
        if kind == NEWLINE:
            newline = after
        kind, after = _class_of(data, at, stop, classes)
    if with_newlines and newline > start:
        return newline
    return at if kind == _END or last == start else last


@compiled
def _gpt2_end(data: Any, at: int, stop: int, classes: Any) -> int:
    """Where the unit that begins at a place ends."""
    if data[at] == _QUOTE:
        end = _contraction(data, at, stop, False)
        if end > at:
            return end
    kind, after = _class_of(data, at, stop, classes)
    if data[at] == _BLANK:
        following, behind = _class_of(data, after, stop, classes)
        if 0 <= following < SPACE:
            kind, after = following, behind
    if kind >= SPACE:
        return _spaces(data, at, stop, classes, False)
    return _run(data, after, stop, classes, kind, _ANY)


@compiled
def _llama3_end(data: Any, at: int, stop: int, classes: Any, most_digits: int) -> int:
    """Where the unit that begins at a place ends."""
    if data[at] == _QUOTE:
        end = _contraction(data, at, stop, True)
        if end > at:
            return end
    kind, after = _class_of(data, at, stop, classes)
    following, behind = _class_of(data, after, stop, classes)
    if kind == LETTER or (following == LETTER and kind in (OTHER, SPACE)):
        return _run(data, after, stop, classes, LETTER, _ANY)
    if kind == NUMBER:
        return _run(data, after, stop, classes, NUMBER, most_digits - 1)
    if data[at] == _BLANK and following == OTHER:
        kind, after = following, behind
    if kind == OTHER:
        return _run(data, _run(data, after, stop, classes, OTHER, _ANY), stop, classes, NEWLINE, _ANY)
    return _spaces(data, at, stop, classes, True)


@compiled
def encode_by_pattern(
    data: Any, offsets: Any, merges: Merges, classes: Any, pattern: int, cache: Cache, frame: Any, out: Any, ends: Any
) -> int:
    """Writes the ids of all texts between those of `frame`, and where each text's end; returns how many there are.
    `classes`: of each code point."""
    num = 0
    for text in range(len(offsets) - 1):
        out[num] = frame[0]
        num += 1
        at, stop = offsets[text], offsets[text + 1]
        while at < stop:
            if pattern == GPT2:
                end = _gpt2_end(data, at, stop, classes)
            else:
                end = _llama3_end(data, at, stop, classes, 3 if pattern == LLAMA3 else 1)
            num += encode_unit(data[at:end], merges, cache, out[num:])
            at = end
        out[num] = frame[1]
        num += 1
        ends[text] = num
    return num
