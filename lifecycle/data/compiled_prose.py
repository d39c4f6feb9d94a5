"""The compiled loops of `prose_measures.py`, by Numba: 1.4 seconds of a process to import and load, so imported late.

Tables are open-addressed, and used again for each comparison: an entry with another stamp is from before.
"""

from typing import Any

import numpy as np
from numba import njit

from lifecycle.data.character_classes import ALPHABETIC, BULLET, LINE_BREAK, SPACE, STRIPPED

_DOT, _HASH, _ELLIPSIS, _NEWLINE = ord("."), ord("#"), ord("…"), ord("\n")
_MULTIPLIER, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_LONGEST_TOP = 4  # words of the n-grams of which the most frequent counts; of longer ones all repeats do

compiled: Any = njit(cache=True, nogil=True)
inlined: Any = njit(cache=True, nogil=True, inline="always")


@compiled
def hash_of(codes: Any, start: int, end: int, in_lower_case: bool) -> Any:
    """A hash of a stretch of characters; letters of ASCII in lower case, if asked for."""
    found = _MIX
    for at in range(start, end):
        code = codes[at]
        if in_lower_case and 65 <= code <= 90:
            code += 32
        found = (found ^ np.uint64(code)) * _MULTIPLIER
        found ^= found >> _HALF
    return found


@inlined
def _seen_before(table: Any, stamp: int, mask: int, key: Any) -> int:
    """How often a key was counted before with this stamp; counts it. `mask`: one less than the slots in use, a small
    part of the table for a short text, which a core's cache holds."""
    keys, stamps, counts = table
    at = np.int64((key * _MIX) >> _HALF) & mask
    while stamps[at] == stamp and keys[at] != key:
        at = (at + 1) & mask
    if stamps[at] != stamp:
        keys[at], stamps[at], counts[at] = key, stamp, 0
    counts[at] += 1
    return counts[at] - 1


@compiled
def _share(part: float, total: float) -> float:
    return part / total if total else 0.0


@compiled
def _stripped(codes: Any, classes: Any, bit: int, start: int, end: int) -> Any:
    """A stretch without the characters of a class at its ends."""
    while start < end and classes[codes[start]] & bit:
        start += 1
    while end > start and classes[codes[end - 1]] & bit:
        end -= 1
    return start, end


@compiled
def _lines(codes: Any, classes: Any, table: Any, stamp: int, mask: int, out: Any) -> None:
    num = chars = bullets = ellipses = repeated = repeated_chars = 0
    start, length = 0, len(codes)
    for at in range(length + 1):
        if at < length and not classes[codes[at]] & LINE_BREAK:
            continue
        first, last = _stripped(codes, classes, SPACE, start, at)
        start, end = at + 1, at
        if first == last:
            continue
        num += 1
        chars += last - first
        bullets += bool(classes[codes[first]] & BULLET) and first + 1 < end and bool(classes[codes[first + 1]] & SPACE)
        has_dots = last - first >= 3 and codes[last - 1] == _DOT and codes[last - 2] == _DOT and codes[last - 3] == _DOT
        ellipses += codes[last - 1] == _ELLIPSIS or has_dots
        if _seen_before(table, stamp, mask, hash_of(codes, first, last, False)):
            repeated += 1
            repeated_chars += last - first
    out[0], out[1] = _share(bullets, num), _share(ellipses, num)
    out[2], out[3] = _share(repeated, num), _share(repeated_chars, chars)


@compiled
def _paragraphs(codes: Any, classes: Any, table: Any, stamp: int, mask: int, out: Any) -> None:
    """Paragraphs end where blanks have two line feeds among them."""
    num = chars = repeated = repeated_chars = 0
    start = at = 0
    length = len(codes)
    while at <= length:
        line_feeds, end = 0, at
        while at < length and classes[codes[at]] & SPACE:
            line_feeds += codes[at] == _NEWLINE
            at += 1
        if line_feeds >= 2 or at == length:
            first, last = _stripped(codes, classes, SPACE, start, end)
            start = at
            if first < last:
                num += 1
                chars += last - first
                if _seen_before(table, stamp, mask, hash_of(codes, first, last, False)):
                    repeated += 1
                    repeated_chars += last - first
        at += 1
    out[4], out[5] = _share(repeated, num), _share(repeated_chars, chars)


@compiled
def _symbols(codes: Any) -> int:
    num = at = 0
    length = len(codes)
    while at < length:
        code = codes[at]
        if code == _DOT and at + 2 < length and codes[at + 1] == _DOT and codes[at + 2] == _DOT:
            num += 1
            at += 3
            continue
        num += code in (_HASH, _ELLIPSIS)
        at += 1
    return num


@compiled
def _words(codes: Any, classes: Any, stop_words: Any, hashes: Any, before: Any) -> Any:
    """Fills in each word's hash, and the characters of the words before it; how many words there are, with a letter,
    and different stop words."""
    num = alphabetic = found = start = 0
    length = len(codes)
    for at in range(length + 1):
        if at < length and not classes[codes[at]] & SPACE:
            continue
        if start < at:
            hashes[num] = hash_of(codes, start, at, False)
            before[num + 1] = before[num] + at - start
            num += 1
            for place in range(start, at):
                if classes[codes[place]] & ALPHABETIC:
                    alphabetic += 1
                    break
            first, last = _stripped(codes, classes, STRIPPED, start, at)
            if last - first <= 4:
                key = hash_of(codes, first, last, True)
                for number in range(len(stop_words)):
                    if stop_words[number] == key:
                        found |= 1 << number
        start = at + 1
    distinct = 0
    while found:
        found &= found - 1
        distinct += 1
    return num, alphabetic, distinct


@compiled
def _top_share(grams: Any, before: Any, n: int, num: int, table: Any, stamp: int, mask: int, total: int) -> float:
    """Characters in all occurrences of the most frequent n-gram, over all characters in words; 0 if none occurs twice.
    Of equally frequent ones the longest counts."""
    top = longest = 0
    for at in range(num - n + 1):
        times = _seen_before(table, stamp, mask, grams[at]) + 1
        size = before[at + n] - before[at]
        if times > top:
            top, longest = times, size
        elif times == top:
            longest = max(longest, size)
    return min(1.0, _share(top * longest, total)) if top > 1 else 0.0


@compiled
def _duplicate_share(grams: Any, before: Any, n: int, num: int, table: Any, stamp: int, mask: int, total: int) -> float:
    """Characters in repeats of an earlier n-gram, over all characters in words; overlaps count once."""
    chars = covered_to = 0
    for at in range(num - n + 1):
        if _seen_before(table, stamp, mask, grams[at]):
            chars += before[at + n] - before[max(at, covered_to)]
            covered_to = at + n
    return _share(chars, total)


@compiled
def measure(
    codes: Any, ends: Any, classes: Any, stop_words: Any, table: Any, lines: Any, words: Any, counts: Any
) -> None:
    """Fills in the measures of each text: rows of `lines`, `words` and `counts`. Each text ends at one of `ends`."""
    longest = 0
    for text in range(len(ends)):
        longest = max(longest, ends[text] - (ends[text - 1] if text else 0))
    hashes, before = np.empty(longest // 2 + 1, np.uint64), np.zeros(longest // 2 + 2, np.int64)
    stamp = 0
    for text in range(len(ends)):
        own = codes[ends[text - 1] if text else 0 : ends[text]]
        num, alphabetic, distinct = _words(own, classes, stop_words, hashes, before)
        mask = 1
        while mask < 2 * num:  # no more lines than words, nor n-grams
            mask = 2 * mask + 1
        _lines(own, classes, table, stamp + 1, mask, lines[text])
        _paragraphs(own, classes, table, stamp + 2, mask, lines[text])
        total = before[num]
        counts[text, 0], counts[text, 1] = num, distinct
        out = words[text]
        out[0], out[1], out[2] = _share(total, num), _share(_symbols(own), num), _share(alphabetic, num)
        grams = hashes[:num].copy()
        for n in range(2, 11):
            for at in range(num - n + 1):
                grams[at] = grams[at] * _MULTIPLIER + hashes[at + n - 1]
            if n <= _LONGEST_TOP:
                out[n + 1] = _top_share(grams, before, n, num, table, stamp + n + 1, mask, total)
            else:
                out[n + 1] = _duplicate_share(grams, before, n, num, table, stamp + n + 1, mask, total)
        stamp += 16
