"""The compiled loops of the text index, by Numba: a table of n-grams, chains of hits, passages in common.
Imported late, as `compiled_words.py` is.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.compiled_words import find_words
from lifecycle.data.mixing import MIX, MULTIPLIER

_HALF = np.uint64(32)
PRINT_BITS = 16  # of a key, besides those that its bucket is known by


@inlined
def _gram(hashes: Any, at: int, n: int) -> Any:
    """The hash of `n` words, whose bits all depend on each of them."""
    total = hashes[at]
    for offset in range(1, n):
        total = total * MULTIPLIER + hashes[at + offset]
    total = (total ^ (total >> _HALF)) * MIX
    return total ^ (total >> _HALF)


@compiled
def hash_grams(words: Any, n: int, keys: Any) -> int:
    """Fills in the key of each run of `n` words; returns how many there are."""
    num = max(0, len(words) - n + 1)
    for at in range(num):
        keys[at] = _gram(words, at, n)
    return num


@compiled
def fingerprint(data: Any, offsets: Any, folded: Any, first: int, n: int, entries: Any) -> int:
    """Fills in the entries of texts, the first of which has the number `first`: a key's upper 48 bits, and below them
    the text's number. Returns how many there are."""
    longest = num = 0
    for text in range(len(offsets) - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    words = np.empty(longest // 2 + 1, np.uint64)
    begins, ends = np.empty(len(words), np.int32), np.empty(len(words), np.int32)
    for text in range(len(offsets) - 1):
        num_words = find_words(data[offsets[text] : offsets[text + 1]], folded, words, begins, ends)
        own = hash_grams(words[:num_words], n, entries[num:])
        for at in range(num, num + own):
            entries[at] = entries[at] & np.uint64(0xFFFFFFFFFFFF0000) | np.uint64(first + text)
        num += own
    return num


@compiled
def split_entries(entries: Any, bits: int, starts: Any, prints: Any, texts: Any) -> int:
    """Fills in a block's table from sorted entries, each once: `starts` of the buckets, by the upper `bits` of the
    keys; then the next bits of each key, and the text's number. Returns how many there are."""
    num, bucket = 0, -1
    for at in range(len(entries)):
        if at and entries[at] == entries[at - 1]:
            continue
        own = np.int64(entries[at] >> np.uint64(64 - bits))
        while bucket < own:
            bucket += 1
            starts[bucket] = num
        prints[num] = entries[at] >> np.uint64(64 - bits - PRINT_BITS)
        texts[num] = entries[at]
        num += 1
    for rest in range(bucket + 1, len(starts)):
        starts[rest] = num
    return num


@inlined
def _bounds(starts: Any, prints: Any, key: Any) -> Any:
    """Where the entries of a key begin and end in a block's table."""
    bits = 0
    while (len(starts) - 1) >> (bits + 1):
        bits += 1
    bucket = np.int64(key >> np.uint64(64 - bits))
    own = np.uint16(key >> np.uint64(64 - bits - PRINT_BITS))
    low, end = np.int64(starts[bucket]), np.int64(starts[bucket + 1])
    while low < end and prints[low] < own:
        low += 1
    high = low
    while high < end and prints[high] == own:
        high += 1
    return low, high


@compiled
def count_hits(starts: Any, prints: Any, keys: Any, counts: Any) -> None:
    """Adds to `counts` how many texts of a block have each key."""
    for number in range(len(keys)):
        low, high = _bounds(starts, prints, keys[number])
        counts[number] += high - low


@compiled
def chain(starts: Any, prints: Any, texts: Any, keys: Any, is_used: Any, chains: Any) -> int:
    """Fills in the chains: rows of (text, first key, last key), for each text that has all keys from the one to the
    other, and neither the key before nor the one behind; returns how many there are."""
    num = 0
    lasts, firsts = np.full(1 << 16, -1, np.int64), np.empty(1 << 16, np.int64)
    for number in range(len(keys)):
        if not is_used[number]:
            continue
        low, high = _bounds(starts, prints, keys[number])
        for at in range(low, high):
            text = texts[at]
            if lasts[text] >= 0 and lasts[text] < number - 1:
                chains[num, 0], chains[num, 1], chains[num, 2] = text, firsts[text], lasts[text]
                num += 1
                lasts[text] = -1
            if lasts[text] < 0:
                firsts[text] = number
            lasts[text] = number
    for text in range(len(lasts)):
        if lasts[text] >= 0:
            chains[num, 0], chains[num, 1], chains[num, 2] = text, firsts[text], lasts[text]
            num += 1
    return num


@compiled
def link_windows(words: Any, size: int, heads: Any, links: Any) -> None:
    """Prepares `common`: places of a text's windows of `size` words, by hash, in lists; -1 ends one."""
    heads[:] = -1
    mask = np.uint64(len(heads) - 1)
    for at in range(len(words) - size, -1, -1):
        slot = _gram(words, at, size) & mask
        links[at] = heads[slot]
        heads[slot] = at


@compiled
def common(
    words: Any, others: Any, size: int, heads: Any, links: Any, best: Any, reach: Any, rows: Any, steps: int
) -> Any:
    """Fills in rows of (first word, length, place): a passage of `words` that `others` have at a place, as long as it
    can be in both directions and no shorter than `size`; of several that begin with the same word, the longest. `reach`
    becomes, for each word, where the last passage ends that has it. `best` is room, all 0.

    Returns how many there are, and how many of `steps` are left; below 0 it has stopped early: both texts repeat
    themselves.
    """
    num, mask = 0, np.uint64(len(heads) - 1)
    for place in range(len(others) - size + 1):
        at = heads[_gram(others, place, size) & mask]
        while at >= 0 and steps >= 0:
            steps -= 1
            if not (at and place and words[at - 1] == others[place - 1]):
                length, most = 0, min(len(words) - at, len(others) - place)
                while length < most and words[at + length] == others[place + length]:
                    length += 1
                steps -= length
                if length >= size and length > best[at, 0]:
                    if not best[at, 0]:
                        rows[num, 0] = at
                        num += 1
                    best[at, 0], best[at, 1] = length, place
            at = links[at]
    for row in range(num):
        at = rows[row, 0]
        rows[row, 1], rows[row, 2] = best[at, 0], best[at, 1]
        for word in range(at, at + best[at, 0]):
            reach[word] = max(reach[word], at + best[at, 0])
        best[at, 0] = 0
    return num, steps
