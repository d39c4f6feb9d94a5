"""The compiled loops over words, by Numba: hashes of words and their places, sets of n-grams.
Imported late, as `compiled_prose.py` is.

Texts are UTF-8, as Arrow holds them. A word is a run of characters that `folded` maps to a letter; others are mapped
to 0 (`ngrams.folded_characters`).
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.mixing import MIX, MULTIPLIER

_HALF = np.uint64(32)
_ALONE = np.uint32(1 << 31)  # beside a letter: it is a word of its own, as in scripts without spaces between words


@inlined
def decoded(text: Any, at: int) -> Any:
    """The character of several bytes that starts at a place, and the place behind it."""
    first = np.int64(text[at])
    if first < 0xE0:
        return (first & 0x1F) << 6 | (text[at + 1] & 0x3F), at + 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | (text[at + 2] & 0x3F), at + 3
    middle = (np.int64(text[at + 1]) & 0x3F) << 12 | (np.int64(text[at + 2]) & 0x3F) << 6
    return (first & 0x07) << 18 | middle | (text[at + 3] & 0x3F), at + 4


@compiled
def hash_words(text: Any, folded: Any, most_chars: int, hashes: Any) -> int:
    """Fills in the hash of each word, of the words that begin within `most_chars`; returns how many there are."""
    num = chars = at = 0
    length = len(text)
    found, is_word = MIX, False
    while at < length:
        if text[at] < 0x80:
            code = np.int64(text[at])
            at += 1
        else:
            code, at = decoded(text, at)
        chars += 1
        letter = folded[code]
        if letter:
            found = (found ^ np.uint64(letter)) * MULTIPLIER
            found ^= found >> _HALF
            is_word = True
        elif is_word:
            hashes[num] = found
            num += 1
            found, is_word = MIX, False
            if chars > most_chars:
                break
    if is_word:
        hashes[num] = found
        num += 1
    return num


@compiled
def find_words(text: Any, folded: Any, hashes: Any, begins: Any, ends: Any) -> int:
    """Fills in the hash of each word of a UTF-8 text and its bytes; returns how many there are. `folded` maps
    characters to letters, others to 0."""
    num = at = first = 0
    found, is_word = MIX, False
    while at < len(text):
        place = at
        if text[at] < 0x80:
            code = np.int64(text[at])
            at += 1
        else:
            code, at = decoded(text, at)
        letter = folded[code]
        is_alone = letter >= _ALONE
        if is_word and (is_alone or not letter):
            hashes[num], begins[num], ends[num] = found, first, place
            num += 1
            found, is_word = MIX, False
        if letter:
            if not is_word:
                first = place
            found = (found ^ np.uint64(letter)) * MULTIPLIER
            found ^= found >> _HALF
            is_word = True
        if is_alone:
            hashes[num], begins[num], ends[num] = found, first, at
            num += 1
            found, is_word = MIX, False
    if is_word:
        hashes[num], begins[num], ends[num] = found, first, at
        num += 1
    return num


@inlined
def _gram(hashes: Any, at: int, n: int) -> Any:
    """The hash of `n` words: a polynomial of theirs."""
    total = hashes[at]
    for offset in range(1, n):
        total = total * MULTIPLIER + hashes[at + offset]
    return total


@inlined
def _power(n: int) -> Any:
    """What the first of `n` words is multiplied by."""
    power = np.uint64(1)
    for _ in range(n - 1):
        power *= MULTIPLIER
    return power


@inlined
def _next_gram(gram: Any, hashes: Any, at: int, n: int, power: Any) -> Any:
    """`_gram(hashes, at, n)` from the one before it; the first one from the words."""
    if at == 0:
        return _gram(hashes, 0, n)
    return (gram - hashes[at - 1] * power) * MULTIPLIER + hashes[at + n - 1]


@compiled
def hash_grams(hashes: Any, n: int, grams: Any) -> None:
    """Fills in the hash of each `n` words in a row."""
    gram, power = np.uint64(0), _power(n)
    for at in range(len(grams)):
        gram = _next_gram(gram, hashes, at, n, power)
        grams[at] = gram


@compiled
def hash_texts(data: Any, offsets: Any, folded: Any, hashes: Any, ends: Any) -> int:
    """Fills in the words' hashes of all texts, one text after the other, and where each text's end."""
    num = 0
    for text in range(len(offsets) - 1):
        own = data[offsets[text] : offsets[text + 1]]
        num += hash_words(own, folded, len(own), hashes[num:])
        ends[text] = num
    return num


@compiled
def num_common(one: Any, other: Any) -> int:
    """How many values two sorted sets have in common."""
    num = at = place = 0
    while at < len(one) and place < len(other):
        if one[at] < other[place]:
            at += 1
        elif one[at] > other[place]:
            place += 1
        else:
            num, at, place = num + 1, at + 1, place + 1
    return num


@compiled
def find_grams(hashes: Any, n: int, bits: Any, shift: int, known: Any, places: Any) -> int:
    """Fills in where in `known`, sorted, the n-grams of some words are, of those that are there; returns how many.

    `bits` are set under what `shift` leaves of each n-gram that is known.
    """
    num, gram, power = 0, np.uint64(0), _power(n)
    for at in range(len(hashes) - n + 1):
        gram = _next_gram(gram, hashes, at, n, power)
        upper = np.int64((gram * MIX) >> np.uint64(shift))
        if not bits[upper >> 3] >> (upper & 7) & 1:
            continue
        place = np.searchsorted(known, gram)
        if place < len(known) and known[place] == gram:
            places[num] = place
            num += 1
    return num


@compiled
def count_owners(positions: Any, first: Any, owners: Any, is_live: Any, counts: Any, found: Any) -> int:
    """Adds one to an owner's count for each of its places that is live, `first[p]` to `first[p + 1]` of each position;
    fills in the owners whose count was zero, and returns how many there are."""
    num = 0
    for position in positions:
        for place in range(first[position], first[position + 1]):
            owner = owners[place]
            if is_live[place]:
                if counts[owner] == 0:
                    found[num] = owner
                    num += 1
                counts[owner] += 1
    return num
