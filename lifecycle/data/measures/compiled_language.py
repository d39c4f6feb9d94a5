"""The compiled loops of `language.py`, by Numba: fastText's prediction and the letters of a text. Imported late, as
`compiled_prose.py` is.

A text's words repeat, so the sums of their rows are kept, each in the slot of its word's hash (64 bits) until another
word takes it. A sum is the same whenever it is computed.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.measures import language_model as layout
from lifecycle.data.measures.language_model import DIM, LONGEST, PIECE_BITS, SHORTEST, WORD_BITS
from lifecycle.data.measures.scripts import IS_UPPER, LATIN, SCRIPT_BITS

WINDOWS, WINDOW = 8, 128  # stretches of a long text that are read first, and bytes in each
LONG = 1536  # bytes: below, reading all costs about as much
SURE = 0.7  # a sample's answer with this score stands: in 3 of 4,103 documents it is another one than the whole text's
SUMS = 1 << 15  # words whose sums are kept: 2.4 MB, most of a core's cache
_BLANK, _BEGIN, _END = 32, ord("<"), ord(">")
_OFFSET, _PRIME = np.uint32(layout.FNV_OFFSET), np.uint32(layout.FNV_PRIME)
_BUCKETS, _SPREAD, _FREE = np.uint32(layout.BUCKETS), np.uint32(layout.SPREAD), np.uint32(layout.FREE)
_MULTIPLIER, _MIX, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(32)
_SMALL = 1e-5  # fastText adds it to a probability before it takes the logarithm
_DEEPEST = 400  # nodes that wait in a walk down the tree of 351


@inlined
def _is_blank(byte: Any) -> bool:
    """What separates fastText's words: a blank, a tab, an end of a line or page, NUL."""
    return byte <= _BLANK and (byte == _BLANK or 9 <= byte <= 13 or byte == 0)


@inlined
def _is_inside(byte: Any) -> bool:
    """Whether a byte continues a character."""
    return byte & 0xC0 == 0x80


@inlined
def _hashed(found: Any, byte: Any) -> Any:
    return np.uint32((found ^ np.uint32(np.int8(byte))) * _PRIME)


@inlined
def _first_slot(key: Any, bits: Any) -> Any:
    return np.uint32(np.uint32(key * _SPREAD) >> np.uint32(32 - bits))


@inlined
def _next_slot(slot: Any, bits: Any) -> Any:
    return np.uint32((slot + np.uint32(1)) & np.uint32((1 << bits) - 1))


@inlined
def _add_row(model: Any, row: Any, total: Any) -> None:
    for column in range(DIM):
        total[column] += model.rows[row, column]


@compiled
def _is_word(model: Any, row: Any, word: Any) -> bool:
    begin = model.word_ends[row]
    if model.word_ends[row + 1] - begin != len(word):
        return False
    for at in range(len(word)):  # noqa: SIM110
        if model.word_bytes[begin + at] != word[at]:
            return False
    return True


@compiled
def _add_whole(model: Any, key: Any, word: Any, total: Any) -> int:
    """Adds the row of a word of the dictionary; whether it is one."""
    slot = _first_slot(key, WORD_BITS)
    while model.word_hashes[slot] != _FREE:
        row = model.word_rows[slot]
        if model.word_hashes[slot] == key and _is_word(model, row, word):
            _add_row(model, row, total)
            return 1
        slot = _next_slot(slot, WORD_BITS)
    return 0


@inlined
def _add_piece(model: Any, key: Any, total: Any) -> int:
    """Adds the row of a piece that matters; whether it does."""
    piece = np.uint32(key % _BUCKETS)
    slot = _first_slot(piece, PIECE_BITS)
    while model.piece_hashes[slot] != piece:
        if model.piece_hashes[slot] == _FREE:
            return 0
        slot = _next_slot(slot, PIECE_BITS)
    _add_row(model, model.piece_rows[slot], total)
    return 1


@compiled
def _add_word(model: Any, word: Any, marked: Any, total: Any) -> int:
    """Adds the rows of a word and of its pieces, with marks at its ends; returns how many. `marked`: space for it."""
    key = _OFFSET
    marked[0] = _BEGIN
    for at in range(len(word)):
        key = _hashed(key, word[at])
        marked[at + 1] = word[at]
    length = len(word) + 2
    marked[length - 1] = _END
    num = _add_whole(model, key, word, total)
    for start in range(length):
        if _is_inside(marked[start]):
            continue
        key, at, chars = _OFFSET, start, 0
        while at < length and chars < LONGEST:
            key = _hashed(key, marked[at])
            at += 1
            while at < length and _is_inside(marked[at]):
                key = _hashed(key, marked[at])
                at += 1
            chars += 1
            if chars >= SHORTEST:
                num += _add_piece(model, key, total)
    return num


@compiled
def _mean_row(model: Any, text: Any, keys: Any, counts: Any, sums: Any, marked: Any, mean: Any) -> None:
    """Fills in the mean of the rows of a text and of the end of its line."""
    for place in range(len(mean)):
        mean[place] = model.rows[0, place]
    num, at, length = 1, 0, len(text)
    while at < length:
        if _is_blank(text[at]):
            at += 1
            continue
        begin, key = at, _MIX
        while at < length and not _is_blank(text[at]):
            key = (key ^ np.uint64(text[at])) * _MULTIPLIER
            at += 1
        key ^= key >> _HALF
        slot = key & np.uint64(SUMS - 1)
        if keys[slot] != key:
            keys[slot] = key
            sums[slot] = 0
            counts[slot] = _add_word(model, text[begin:at], marked, sums[slot])
        num += counts[slot]
        for column in range(DIM):
            mean[column] += sums[slot, column]
    for column in range(DIM):
        mean[column] /= num


@compiled
def _best_leaf(model: Any, mean: Any, nodes: Any, logs: Any) -> Any:
    """The most probable leaf of the tree, and its probability. `nodes` and `logs`: space for what waits."""
    num_leaves = len(model.decisions)
    best, found = -np.inf, 0
    nodes[0], logs[0] = len(model.children) - 1, 0.0
    waiting = 1
    while waiting:
        waiting -= 1
        node, log = nodes[waiting], logs[waiting]
        if log <= best:
            continue
        if node < num_leaves:
            best, found = log, node
            continue
        decision = np.float32(0)
        for column in range(DIM):
            decision += mean[column] * model.decisions[node - num_leaves, column]
        right = 1 / (1 + np.exp(-np.float64(decision)))
        likelier = int(right > 0.5)  # down which it goes first: what waits then is passed over, mostly
        for side in (1 - likelier, likelier):
            nodes[waiting] = model.children[node, side]
            logs[waiting] = log + np.log((right if side else 1 - right) + _SMALL)
            waiting += 1
    return found, np.exp(best)


@compiled
def _letters(text: Any, classes: Any, scripts: Any) -> Any:
    """How many letters a text has, how many of them are in some scripts, given as bits, and how many are capitals."""
    letters = of_ascii = meant = capitals = at = 0
    while at < len(text):
        code = np.int64(text[at])
        at += 1
        if code < 0x80:
            of_ascii += np.uint8((code | 32) - ord("a")) < 26
            capitals += np.uint8(code - ord("A")) < 26
            continue
        code &= 0x1F if code < 0xE0 else 0x0F if code < 0xF0 else 0x07
        while at < len(text) and _is_inside(text[at]):
            code = code << 6 | np.int64(text[at] & 0x3F)
            at += 1
        found = classes[code]
        if found:
            letters += 1
            meant += scripts >> (found & SCRIPT_BITS) & 1
            capitals += found >= IS_UPPER
    return letters + of_ascii, meant + of_ascii * (scripts >> LATIN & 1), capitals


@compiled
def _sample(text: Any, out: Any) -> int:
    """Copies `WINDOWS` stretches of a text, evenly spread, with a blank behind each; returns their bytes. A stretch
    begins behind a blank, if there is one in its first half, and at the beginning of a character."""
    num, room = 0, len(text) - WINDOW
    for window in range(WINDOWS):
        first = room * window // (WINDOWS - 1)
        begin, end = first, first + WINDOW
        while window and begin < first + WINDOW // 2 and not _is_blank(text[begin - 1]):
            begin += 1
        while begin < end and _is_inside(text[begin]):
            begin += 1
        while end < len(text) and end > begin and _is_inside(text[end]):
            end -= 1
        for at in range(begin, end):
            out[num] = text[at]
            num += 1
        out[num] = _BLANK
        num += 1
    return num


@compiled
def predict(
    model: Any, text: Any, ends: Any, scripts: Any, classes: Any, kept: Any, leaves: Any, scores: Any, letters: Any
) -> None:
    """Fills in each text's leaf and its probability, and `[letters, those in the scripts of the leaf, capitals]` of
    what was read: a sample if the text is long and the answer sure, else all.

    `ends`: where each text begins and ends in the bytes; `scripts`: of each leaf, as bits; `kept`: sums of words.
    """
    keys, counts, sums = kept
    longest = 0
    for number in range(len(ends) - 1):
        longest = max(longest, ends[number + 1] - ends[number])
    marked = np.empty(longest + 2, np.uint8)
    sample = np.empty(WINDOWS * (WINDOW + 1), np.uint8)
    nodes, logs = np.empty(_DEEPEST, np.int64), np.empty(_DEEPEST)
    mean = np.empty(DIM, np.float32)
    for number in range(len(ends) - 1):
        whole = text[ends[number] : ends[number + 1]]
        is_long = len(whole) > LONG
        for is_sampled in (is_long, False):
            own = sample[: _sample(whole, sample)] if is_sampled else whole
            _mean_row(model, own, keys, counts, sums, marked, mean)
            leaf, score = _best_leaf(model, mean, nodes, logs)
            found = _letters(own, classes, scripts[leaf])
            if not is_sampled or (score >= SURE and found[0] > 0):
                break
        leaves[number], scores[number] = leaf, score
        letters[number, 0], letters[number, 1], letters[number, 2] = found
