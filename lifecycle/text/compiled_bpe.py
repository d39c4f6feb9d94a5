"""The compiled loops of byte-pair encoding, by Numba: merges in a unit of text, and a cache of units. Imported late, as
Numba takes half a second.

A unit is a stretch of a text in UTF-8 that no token crosses. Its symbols (characters or bytes) are joined pair by pair,
the pair of the lowest rank first, of equal ones the leftmost, until no neighbours are a pair: with a heap, so that
a unit of n symbols takes O(n log n) steps (Kudo and Richardson, "SentencePiece", 2018, section 3.1).
"""

from typing import Any, NamedTuple

import numpy as np

from lifecycle.core.compiled import compiled, inlined

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: spreads keys over the upper bits
_HALF = np.uint64(32)
_ONE = np.uint64(1)
LONGEST_CACHED = 128  # bytes of a unit: Llama 3's longest token; longer ones rarely come again


class Merges(NamedTuple):
    """What symbols join. `symbols`: of each byte or code point its symbol, -1 without one; `keys`, a table with open
    addressing of `1 << bits` places: left << 32 | right, or `EMPTY`; `ranks` and `joined`: the pair's rank and symbol.
    Symbols from `num_ids` on are characters that are no token: they become the tokens `of_bytes` of their bytes."""

    symbols: Any
    keys: Any
    ranks: Any
    joined: Any
    bits: int
    of_bytes: Any
    num_ids: int
    is_bytes: bool


class Cache(NamedTuple):
    """The ids of units met before, as many as there is room for. A place has the unit's hash, where its bytes and its
    ids begin and how many they are; `used`: units, bytes, ids."""

    hashes: Any
    places: Any
    data: Any
    ids: Any
    used: Any


@inlined
def decoded(text: Any, at: int) -> Any:
    """The code point at a place, and the place behind it."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (text[at + 1] & 0x3F), at + 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | (text[at + 2] & 0x3F), at + 3
    middle = (np.int64(text[at + 1]) & 0x3F) << 12 | (np.int64(text[at + 2]) & 0x3F) << 6
    return (first & 0x07) << 18 | middle | (text[at + 3] & 0x3F), at + 4


@inlined
def _place(merges: Merges, left: int, right: int) -> Any:
    """Where a pair is in the table, -1 if it is none."""
    key = np.uint64(left) << _HALF | np.uint64(right)
    at = np.int64((key * _FACTOR) >> np.uint64(64 - merges.bits))
    while merges.keys[at] != EMPTY:
        if merges.keys[at] == key:
            return at
        at = (at + 1) & ((1 << merges.bits) - 1)
    return -1


@compiled
def fill_pairs(lefts: Any, rights: Any, ranks: Any, joined: Any, merges: Merges) -> None:
    """Puts pairs into the table; of equal ones the last counts."""
    for number in range(len(lefts)):
        key = np.uint64(lefts[number]) << _HALF | np.uint64(rights[number])
        at = np.int64((key * _FACTOR) >> np.uint64(64 - merges.bits))
        while merges.keys[at] != EMPTY and merges.keys[at] != key:
            at = (at + 1) & ((1 << merges.bits) - 1)
        merges.keys[at], merges.ranks[at], merges.joined[at] = key, ranks[number], joined[number]


@inlined
def _push(heap: Any, size: int, value: int) -> None:
    at = size
    while at > 0 and heap[(at - 1) >> 1] > value:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = value


@inlined
def _drop_first(heap: Any, size: int) -> None:
    """Takes the least one of `size` values away."""
    value, at, size = heap[size - 1], 0, size - 1
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@compiled
def _join(work: Any, heap: Any, num: int, merges: Merges) -> None:
    """Joins the symbols `work[0, :num]`; one that has been joined to its left is -1. Rows 1 and 2: the next symbol and
    the one before."""
    size = 0
    for at in range(num):
        work[1, at], work[2, at] = at + 1, at - 1
        if at + 1 < num:
            pair = _place(merges, work[0, at], work[0, at + 1])
            if pair >= 0:
                _push(heap, size, np.int64(merges.ranks[pair]) << 32 | at)
                size += 1
    while size:
        rank, at = heap[0] >> 32, heap[0] & 0xFFFFFFFF
        _drop_first(heap, size)
        size -= 1
        right = np.int64(work[1, at])
        if work[0, at] < 0 or right >= num:
            continue
        pair = _place(merges, work[0, at], work[0, right])
        if pair < 0 or merges.ranks[pair] != rank:  # one of the two has grown
            continue
        work[0, at], work[0, right] = merges.joined[pair], -1
        after, before = np.int64(work[1, right]), np.int64(work[2, at])
        work[1, at] = after
        if after < num:
            work[2, after] = at
            pair = _place(merges, work[0, at], work[0, after])
            if pair >= 0:
                _push(heap, size, np.int64(merges.ranks[pair]) << 32 | at)
                size += 1
        if before >= 0:
            pair = _place(merges, work[0, before], work[0, at])
            if pair >= 0:
                _push(heap, size, np.int64(merges.ranks[pair]) << 32 | before)
                size += 1


@compiled
def _encode_unit(unit: Any, merges: Merges, out: Any) -> int:
    """Writes a unit's ids; returns how many."""
    length = len(unit)
    work = np.empty((4, length), np.int32)  # its last row: where the symbol's bytes begin
    num = at = 0
    while at < length:
        work[3, num] = at
        if merges.is_bytes:
            work[0, num] = merges.symbols[unit[at]]
            at += 1
        else:
            code, at = decoded(unit, at)
            work[0, num] = merges.symbols[code]
        num += 1
    _join(work, np.empty(3 * num, np.int64), num, merges)
    written = at = 0
    while at < num:
        after = np.int64(work[1, at])
        if 0 <= work[0, at] < merges.num_ids:
            out[written] = work[0, at]
            written += 1
        else:
            for byte in range(work[3, at], work[3, after] if after < num else length):
                out[written] = merges.of_bytes[unit[byte]]
                written += 1
        at = after
    return written


@inlined
def _found(unit: Any, found: Any, cache: Cache) -> Any:
    """(where a unit is in the cache or would be, whether it is there). `found`: its hash."""
    mask = len(cache.hashes) - 1
    at = np.int64(found >> _HALF) & mask
    while cache.hashes[at]:
        if cache.hashes[at] == found and cache.places[at, 1] == len(unit):
            start, same = cache.places[at, 0], True
            for byte in range(len(unit)):
                if cache.data[start + byte] != unit[byte]:
                    same = False
                    break
            if same:
                return at, True
        at = (at + 1) & mask
    return at, False


@inlined
def _hash(unit: Any) -> Any:
    found = np.uint64(len(unit))
    for byte in unit:
        found = (found ^ np.uint64(byte)) * _FACTOR
    return (found ^ found >> _HALF) * _FACTOR | _ONE  # 0 is an empty place


@inlined
def _keep(unit: Any, at: int, found: Any, ids: Any, cache: Cache) -> None:
    """Puts a unit into its place in the cache if there is room."""
    num, bytes_used, ids_used = cache.used
    has_room = bytes_used + len(unit) <= len(cache.data) and ids_used + len(ids) <= len(cache.ids)
    if not has_room or 2 * num >= len(cache.hashes):
        return
    cache.hashes[at] = found
    cache.places[at] = (bytes_used, len(unit), ids_used, len(ids))
    for place in range(len(unit)):
        cache.data[bytes_used + place] = unit[place]
    for place in range(len(ids)):
        cache.ids[ids_used + place] = ids[place]
    cache.used[:] = (num + 1, bytes_used + len(unit), ids_used + len(ids))


@compiled
def put(unit: Any, ids: Any, cache: Cache) -> None:
    """Says what a unit's ids are, whatever its merges say."""
    found = _hash(unit)
    at, is_there = _found(unit, found, cache)
    if not is_there:
        _keep(unit, at, found, ids, cache)


@compiled
def encode_unit(unit: Any, merges: Merges, cache: Cache, out: Any) -> int:
    """Writes a unit's ids, from the cache if they are there; returns how many."""
    if len(unit) > LONGEST_CACHED:
        return _encode_unit(unit, merges, out)
    found = _hash(unit)
    at, is_there = _found(unit, found, cache)
    if is_there:
        start, num = cache.places[at, 2], cache.places[at, 3]
        for number in range(num):
            out[number] = cache.ids[start + number]
        return num
    num = _encode_unit(unit, merges, out)
    _keep(unit, at, found, out[:num], cache)
    return num


@compiled
def encode_by_neighbours(
    data: Any, offsets: Any, merges: Merges, neighbours: Any, cache: Cache, frame: Any, out: Any, ends: Any
) -> int:
    """Writes the ids of all texts between those of `frame`, and where each text's end; returns how many there are.
    A unit ends between characters that are neighbours in no token: `neighbours` has the bits of those that are."""
    num = 0
    for text in range(len(offsets) - 1):
        out[num] = frame[0]
        num += 1
        start, stop = offsets[text], offsets[text + 1]
        at, before = start, np.int64(-1)
        while at < stop:
            code, after = decoded(data, at)
            symbol = np.int64(merges.symbols[code])
            if at > start and (symbol < 0 or before < 0 or not _are_neighbours(neighbours, before, symbol)):
                num += encode_unit(data[start:at], merges, cache, out[num:])
                start = at
            at, before = after, symbol
        if start < stop:
            num += encode_unit(data[start:stop], merges, cache, out[num:])
        out[num] = frame[1]
        num += 1
        ends[text] = num
    return num


@inlined
def _are_neighbours(neighbours: Any, left: int, right: int) -> Any:
    bit = neighbour_bit(left, right)
    return neighbours[bit >> 3] >> (bit & 7) & 1


@inlined
def neighbour_bit(left: int, right: int) -> Any:
    """The bit of two symbols in a table of 2^21 bits; others that share it make units longer, never wrong."""
    return np.int64(((np.uint64(left) << _HALF | np.uint64(right)) * _FACTOR) >> np.uint64(43))


@compiled
def fill_neighbours(lefts: Any, rights: Any, neighbours: Any) -> None:
    """Sets the bits of symbols that are neighbours."""
    for number in range(len(lefts)):
        bit = neighbour_bit(lefts[number], rights[number])
        neighbours[bit >> 3] |= np.uint8(1 << (bit & 7))
