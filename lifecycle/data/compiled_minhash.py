"""The compiled loops of MinHash, by Numba: a text's simplified words, their n-grams' hashes, the keys of its bands.
Imported late, as `compiled_prose.py` is.

Texts are UTF-8, as Arrow holds them. The words of a text are laid out with one space between two of them, so that an
n-gram is a stretch of bytes.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.compiled_words import decoded
from lifecycle.data.mixing import MULTIPLIER

SPACE, DROPPED = 32, 0  # what `letters` maps characters to that are between words, and to those that are left out
PRIME = np.uint64((1 << 61) - 1)

_BITS, _HALF = np.uint64(61), np.uint64(32)
# The primes of xxHash's specification.
_FIRST, _SECOND, _THIRD = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
_FOURTH, _FIFTH = np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)


@compiled
def sign(data: Any, offsets: Any, letters: Any, most_chars: int, n: int, factors: Any, terms: Any, keys: Any) -> None:
    """Fills in each text's bands, a row of `keys`; leaves those of a text without words.

    Of each hash function, `factor * x + term` modulo 2^64 and then 2^61 - 1, the least value over the n-grams is kept;
    the values of a band are hashed together. A text of fewer words than `n` is one n-gram.
    """
    longest = 0
    for text in range(len(offsets) - 1):
        longest = max(longest, min(offsets[text + 1] - offsets[text], 4 * most_chars))
    words, begins = np.empty(2 * longest + 8, np.uint8), np.empty(longest // 2 + 2, np.int64)
    grams, least = np.empty(longest // 2 + 1, np.uint64), np.empty(len(factors), np.uint64)
    rows = len(factors) // keys.shape[1]
    for text in range(len(offsets) - 1):
        own = data[offsets[text] : offsets[text + 1]]
        num, num_numbers = lay_out(own, letters, most_chars, True, words, begins)
        if 2 * num_numbers > num:  # without its numbers little would be left of it
            lay_out(own, letters, most_chars, False, words, begins)
        size = min(n, num)
        num_grams = num - size + 1 if num else 0
        for at in range(num_grams):
            grams[at] = xxh64(words, begins[at], begins[at + size] - 1)
        _keep_least(grams[:num_grams], factors, terms, least)
        for band in range(keys.shape[1] if num else 0):
            key = np.uint64(band)
            for row in range(rows):
                key = (key ^ least[band * rows + row]) * MULTIPLIER
                key ^= key >> _HALF
            keys[text, band] = key


@compiled
def lay_out(text: Any, letters: Any, most_chars: int, are_alike: bool, words: Any, begins: Any) -> Any:
    """Fills in the words of a text with a space behind each, and where each begins; returns how many there are, and how
    many are numbers. `begins` has one entry more, as if another word came behind them.

    A word of digits alone is a number, its decimals included; where numbers are alike, it is a 0. Nearly each character
    is written without a branch: there would be twice as many as processors guess.
    """
    num = num_numbers = at = size = 0
    in_gap, in_number = True, False
    length = _bytes_of(text, most_chars)
    while at <= length:
        byte = text[at] if at < length else SPACE  # ends the last word
        if byte < 0x80:
            letter = letters[byte]
            at += 1
        else:
            code, at = decoded(text, at)
            letter = letters[code]
            if letter == DROPPED:
                continue
            if letter >= 0x80:
                begins[num] = size
                num += in_gap
                in_gap, in_number = False, False
                size = _write(np.int64(letter), words, size)
                continue
        is_gap = letter == SPACE
        if in_number and is_gap:
            if (byte == 46 or byte == 44) and at < length and 48 <= text[at] < 58:
                continue  # a point or comma between two digits
            num_numbers += 1
            if are_alike:
                size = begins[num - 1] + 1
                words[size - 1] = 48
        begins[num] = size
        num += in_gap & (not is_gap)
        words[size] = letter
        size += not (is_gap & in_gap)
        in_number = (48 <= letter < 58) & (in_gap | in_number)
        in_gap = is_gap
    begins[num] = size
    return num, num_numbers


@inlined
def _bytes_of(text: Any, num_chars: int) -> int:
    """How many bytes the first characters of a text are."""
    if len(text) <= num_chars:
        return len(text)
    found = -1
    for at in range(len(text)):
        found += (text[at] & 0xC0) != 0x80
        if found == num_chars:
            return at
    return len(text)


@inlined
def _write(code: int, words: Any, size: int) -> int:
    """Writes a character of several bytes; returns the size behind it."""
    if code < 0x800:
        words[size] = 0xC0 | code >> 6
    else:
        if code < 0x10000:
            words[size] = 0xE0 | code >> 12
        else:
            words[size] = 0xF0 | code >> 18
            size += 1
            words[size] = 0x80 | (code >> 12 & 0x3F)
        size += 1
        words[size] = 0x80 | (code >> 6 & 0x3F)
    words[size + 1] = 0x80 | (code & 0x3F)
    return size + 2


@inlined
def _keep_least(grams: Any, factors: Any, terms: Any, least: Any) -> None:
    """Fills in the least value of each hash function. Four n-grams at a time, which halves the reads of factors.

    The residue modulo 2^61 - 1 is left between 0 and 2^61 + 6: one in 10^17 values is not reduced to the end.
    """
    least[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
    whole = len(grams) // 4 * 4
    for at in range(0, whole, 4):
        for place in range(len(factors)):
            factor, term = factors[place], terms[place]
            one, two = factor * grams[at] + term, factor * grams[at + 1] + term
            three, four = factor * grams[at + 2] + term, factor * grams[at + 3] + term
            lesser = min((one & PRIME) + (one >> _BITS), (two & PRIME) + (two >> _BITS))
            other = min((three & PRIME) + (three >> _BITS), (four & PRIME) + (four >> _BITS))
            least[place] = min(least[place], min(lesser, other))
    for at in range(whole, len(grams)):
        for place in range(len(factors)):
            value = factors[place] * grams[at] + terms[place]
            least[place] = min(least[place], (value & PRIME) + (value >> _BITS))


@inlined
def _rotated(value: Any, by: int) -> Any:
    return value << np.uint64(by) | value >> np.uint64(64 - by)


@inlined
def _read(data: Any, at: int, count: int) -> Any:
    """A number of so many bytes. With an index without a sign the compiler makes one read of it."""
    first, value = np.uint64(at), np.uint64(0)
    for place in range(count):
        value |= np.uint64(data[first + np.uint64(place)]) << np.uint64(8 * place)
    return value


@inlined
def _round(total: Any, lane: Any) -> Any:
    return _rotated(total + lane * _SECOND, 31) * _FIRST


@compiled
def xxh64(data: Any, at: int, end: int) -> Any:
    """XXH64 of a stretch of bytes, seed 0 (xxHash's specification, doc/xxhash_spec.md)."""
    size = np.uint64(end - at)
    if end - at < 32:
        total = _FIFTH
    else:
        one, two, three, four = _FIRST + _SECOND, _SECOND, np.uint64(0), np.uint64(0) - _FIRST
        while at + 32 <= end:
            one, two = _round(one, _read(data, at, 8)), _round(two, _read(data, at + 8, 8))
            three, four = _round(three, _read(data, at + 16, 8)), _round(four, _read(data, at + 24, 8))
            at += 32
        total = _rotated(one, 1) + _rotated(two, 7) + _rotated(three, 12) + _rotated(four, 18)
        for lane in (one, two, three, four):
            total = (total ^ _round(np.uint64(0), lane)) * _FIRST + _FOURTH
    total += size
    while at + 8 <= end:
        total = _rotated(total ^ _round(np.uint64(0), _read(data, at, 8)), 27) * _FIRST + _FOURTH
        at += 8
    if at + 4 <= end:
        total = _rotated(total ^ (_read(data, at, 4) * _FIRST), 23) * _SECOND + _THIRD
        at += 4
    while at < end:
        total = _rotated(total ^ (np.uint64(data[at]) * _FIFTH), 11) * _FIRST
        at += 1
    total = (total ^ (total >> np.uint64(33))) * _SECOND
    total = (total ^ (total >> np.uint64(29))) * _THIRD
    return total ^ (total >> _HALF)
