"""The compiled loops of `classifier.py` and its training, by Numba. Imported late, as `compiled_prose.py` is.

A text's features are its words, pairs of neighbouring words, and runs of three characters, as hashes of `BITS` bits;
each counts once. Blanks are one character, letters are in lower case.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.compiled_words import decoded
from lifecycle.data.mixing import MIX, MULTIPLIER

BITS = 19  # F1 of spam in ten splits: 0.985, as with 20; with 18 0.984, with runs of four characters 0.983
_HALF, _SHIFT = np.uint64(32), np.uint64(64 - BITS)
_WORD, _PAIR, _CHARACTERS = np.uint64(1), np.uint64(2), np.uint64(3)  # tell kinds of features apart
_BLANK, _RUN = np.uint64(32), np.uint64((1 << 48) - 1)
_SPACES = (32, 9, 10, 11, 12, 13, 0xA0)


@inlined
def _add(key: Any, kind: Any, stamps: Any, stamp: Any, found: Any, num: Any) -> Any:
    """Notes a feature that the text has not had yet; returns how many there are."""
    place = (key ^ kind) * MIX >> _SHIFT
    if stamps[place] != stamp:
        stamps[place] = stamp
        found[num] = place
        num += 1
    return num


@compiled
def features(text: Any, folded: Any, stamps: Any, stamp: Any, found: Any) -> int:
    """Fills in the features of a text; returns how many. `stamps`: one for each feature, none of them `stamp`; `found`:
    room for three of each byte."""
    num = at = 0
    word, before = MIX, np.uint64(0)  # hashes of a word, and of the one before it; 0: there is none
    is_word = False
    run = np.uint64(0)  # the last three characters, 16 bits each
    while at <= len(text):
        if at == len(text):
            code = np.int64(32)
            at += 1
        elif text[at] < 0x80:
            code = np.int64(text[at])
            at += 1
        else:
            code, at = decoded(text, at)
        letter = folded[code]
        if letter:
            word = (word ^ np.uint64(letter)) * MULTIPLIER
            word ^= word >> _HALF
            is_word = True
        elif is_word:
            num = _add(word, _WORD, stamps, stamp, found, num)
            if before:
                num = _add(before * MULTIPLIER + word, _PAIR, stamps, stamp, found, num)
            word, before, is_word = MIX, word, False
        character = np.uint64(letter) if letter else _BLANK if code in _SPACES else np.uint64(code)
        if character == _BLANK and run & np.uint64(0xFFFF) == _BLANK:
            continue
        run = (run << np.uint64(16) | character & np.uint64(0xFFFF)) & _RUN
        num = _add(run * MULTIPLIER, _CHARACTERS, stamps, stamp, found, num)
    return num


@compiled
def weigh_texts(data: Any, ends: Any, most: int, folded: Any, weights: Any, bias: Any, out: Any) -> None:
    """Fills in each text's sum of weights: the mean of its features' times the root of their number, and the bias."""
    stamps = np.zeros(len(weights), np.int32)
    found = np.empty(3 * most + 8, np.int64)
    for number in range(len(ends) - 1):
        own = beginning(data[ends[number] : ends[number + 1]], most)
        num = features(own, folded, stamps, number + 1, found)
        total = 0.0
        for place in range(num):
            total += weights[found[place]]
        out[number] = bias + total / np.sqrt(max(num, 1))


@compiled
def beginning(text: Any, most: int) -> Any:
    """The first bytes of a text, up to the end of a character."""
    end = min(len(text), most)
    while end < len(text) and end > 0 and text[end] & 0xC0 == 0x80:
        end -= 1
    return text[:end]


@compiled
def learn(found: Any, ends: Any, labels: Any, order: Any, rate: Any, weights: Any, squares: Any) -> None:
    """One pass of logistic regression by AdaGrad (Duchi et al. 2011) over texts in an order. `found`: their features,
    one text after the other; the last of `weights` is the bias, `squares` the sums of squared gradients."""
    bias = len(weights) - 1
    for number in order:
        own = found[ends[number] : ends[number + 1]]
        value = 1 / np.sqrt(max(len(own), 1))
        total = weights[bias]
        for place in own:
            total += weights[place] * value
        slope = 1 / (1 + np.exp(-total)) - labels[number]
        for place in own:
            squares[place] += (slope * value) ** 2
            weights[place] -= rate * slope * value / np.sqrt(squares[place])
        squares[bias] += slope**2
        weights[bias] -= rate * slope / np.sqrt(squares[bias])
