"""Repeats, compiled: which lines, paragraphs and n-grams of words occur again in a text.

An n-gram occurs twice only where the two shorter ones in it do, so each length is looked for among what is left of the
one before; nearly all the time goes into words and pairs. What must hold: words, lines and paragraphs are compared by
hashes of 64 bits, n-grams exactly, by the numbers of the shorter ones.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled
from lifecycle.data.mixing import MIX

PART = np.dtype([("key", np.uint64), ("chars", np.int64)])  # a word, line or paragraph: its hash; see who fills it in
_HALF = np.uint64(32)


@compiled
def repeats(parts: Any, num: int, table: Any) -> Any:
    """How many lines or paragraphs repeat an earlier one, and their characters (`chars` of each)."""
    among, ids, _, _ = table
    for at in range(num):
        among[at] = at
    _number(parts, num, table)
    repeated = chars = 0
    for at in range(num):
        if ids[at] != at:
            repeated += 1
            chars += parts[at].chars
    return repeated, chars


@compiled
def count_ngrams(words: Any, num: int, longest_top: int, table: Any, seen: Any, chars: Any) -> None:
    """Fills in `chars` for n-grams of 2 words, 3 words and so on: up to `longest_top` words the characters of the most
    frequent one, for longer ones those of all that repeat an earlier one.

    `words` has `num` words, of each as `chars` the characters of those before, and one more; keys are overwritten.
    """
    among = table[0]
    for at in range(num):
        among[at], seen[at] = at, 0
    _number(words, num, table)
    left = num
    for place in range(len(chars)):
        n = place + 2
        left = _extend(words, left, num, table)
        _number(words, left, table)
        if n <= longest_top:
            chars[place] = _top_chars(words, n, left, table)
        else:
            chars[place] = _repeated_chars(words, n, left, table, seen)


@compiled
def _number(parts: Any, num: int, table: Any) -> None:
    """Gives each of the `num` places in `among` as its number the first place with its key, and counts them."""
    among, ids, counts, slots = table
    bits = 1
    while 1 << bits < 2 * num:
        bits += 1
    mask, shift = (1 << bits) - 1, np.uint64(64 - bits)
    slots[: mask + 1] = -1
    for entry in range(num):
        at = among[entry]
        key = parts[at].key
        slot = np.int64((key * MIX) >> shift)
        while slots[slot] >= 0 and parts[slots[slot]].key != key:
            slot = (slot + 1) & mask
        if slots[slot] < 0:
            slots[slot], counts[at] = at, 0
        ids[at] = slots[slot]
        counts[slots[slot]] += 1


@compiled
def _extend(words: Any, left: int, num: int, table: Any) -> int:
    """Leaves in `among` the places at which and behind which an n-gram begins that occurs again, with the numbers of
    both as their key; returns how many there are."""
    among, ids, counts, _ = table
    for entry in range(left):
        if counts[ids[among[entry]]] == 1:
            ids[among[entry]] = -1
    still = 0
    for entry in range(left):
        at = among[entry]
        if ids[at] >= 0 and at + 1 < num and ids[at + 1] >= 0:
            words[at].key = np.uint64(ids[at]) << _HALF | np.uint64(ids[at + 1])
            among[still] = at
            still += 1
        else:
            ids[at] = -1
    return still


@compiled
def _top_chars(words: Any, n: int, left: int, table: Any) -> int:
    """Characters of all occurrences of the most frequent n-gram, with a blank between words; of equally frequent ones
    it is the first. 0 if none occurs twice."""
    among, ids, counts, _ = table
    best, most = 0, 1
    for entry in range(left):
        at = among[entry]
        if ids[at] == at and counts[at] > most:
            best, most = at, counts[at]
    return most * (words[best + n].chars - words[best].chars + n - 1) if most > 1 else 0


@compiled
def _repeated_chars(words: Any, n: int, left: int, table: Any, seen: Any) -> int:
    """Characters of the words in n-grams that repeat an earlier one. The text is read from left to right and goes on
    behind each repeat, so that no character counts twice; what is passed over is no earlier one."""
    among, ids, _, _ = table
    chars = behind = 0
    for entry in range(left):
        at = among[entry]
        if at < behind:
            continue
        if seen[ids[at]] == n:
            chars += words[at + n].chars - words[at].chars
            behind = at + n
        seen[ids[at]] = n
    return chars
