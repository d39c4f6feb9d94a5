"""Many texts to ids at once, for token shards: as `Tokenizer.encode` gives them, several times as fast.

What must hold: the ids are the library's for every text. So compiled loops encode only for tokenizers whose every rule
they follow, and the library for others. They cut texts into units that no token crosses:

- SentencePiece's BPE that changes no text and has all bytes, as it is trained here: a unit is a run of characters, each
  a neighbour of the next one in some piece.
- Byte-level BPE without normalisation, as GPT-2's and Llama 3's, and as it is trained here: a unit is what the pattern
  cuts. A text with the name of an added token is left to the library.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, normalizers

from lifecycle.core.arrow_text import utf8
from lifecycle.text import compiled_bpe, compiled_cutting
from lifecycle.text.byte_level import LLAMA3_PATTERN, QWEN2_PATTERN
from lifecycle.text.compiled_bpe import LONGEST_CACHED
from lifecycle.text.hf_tokenizer import HFTokenizer, byte_of_character
from lifecycle.text.interface import Tokenizer
from lifecycle.text.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer

_UNITS = 1 << 17  # that a cache keeps: 10 MB
_NUM_CODES = 0x110000


class Encoded(NamedTuple):
    """Texts as ids, one after the other, each between BOS and EOS; `ends`: where each text's end."""

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]


type BulkEncoder = Callable[[pa.StringArray], Encoded]


def bulk_encoder(tokenizer: Tokenizer) -> BulkEncoder:
    """The fastest encoder of a tokenizer's texts."""
    if isinstance(tokenizer, SentencePieceTokenizer) and (pieces := _plain_pieces(tokenizer)) is not None:
        return _SentencePieceEncoder(tokenizer, pieces)
    if isinstance(tokenizer, HFTokenizer) and (pattern := _known_pattern(tokenizer)) is not None:
        return _ByteLevelEncoder(tokenizer, pattern)
    return partial(_by_library, tokenizer)


def _by_library(tokenizer: Tokenizer, texts: pa.StringArray) -> Encoded:
    rows = tokenizer.encode_batch(texts.to_pylist())
    ends = np.cumsum([len(row) + 2 for row in rows], dtype=np.int64)
    framed = ((tokenizer.bos_id, *row, tokenizer.eos_id) for row in rows)
    return Encoded(np.fromiter(chain.from_iterable(framed), np.int32), ends)


class _SentencePieceEncoder:
    """Pieces are joined from characters, whose symbols are their pieces' ids."""

    def __init__(self, tokenizer: SentencePieceTokenizer, pieces: list[tuple[str, float]]) -> None:
        self._frame = np.array([tokenizer.bos_id, tokenizer.eos_id], np.int32)
        ids = {piece: tokenizer.processor.piece_to_id(piece) for piece, _ in pieces}
        characters = sorted({character for piece in ids for character in piece} - set(ids))
        symbols = ids | {character: tokenizer.vocab_size + at for at, character in enumerate(characters)}
        of_code = np.full(_NUM_CODES, -1, np.int32)
        for character in filter(lambda piece: len(piece) == 1, symbols):
            of_code[ord(character)] = symbols[character]
        of_code[ord(" ")], of_code[ord(SPACE)] = of_code[ord(SPACE)], -1
        of_bytes = [tokenizer.processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._merges = _merges_table(
            _all_merges(pieces, symbols), of_code, np.array(of_bytes, np.int32), tokenizer.vocab_size, is_bytes=False
        )
        pairs = np.array([(symbols[a], symbols[b]) for piece in ids for a, b in pairwise(piece)], np.int64)
        self._neighbours = np.zeros(1 << 18, np.uint8)
        compiled_bpe.fill_neighbours(*pairs.reshape(-1, 2).T, self._neighbours)
        self._cache = _empty_cache(_UNITS)

    def __call__(self, texts: pa.StringArray) -> Encoded:
        """The ids of texts."""
        data, offsets = _bytes_of(texts)
        ids, ends = np.empty(len(data) + 2 * len(texts), np.int32), np.empty(len(texts), np.int64)
        arguments = (self._merges, self._neighbours, self._cache, self._frame, ids, ends)
        num = compiled_bpe.encode_by_neighbours(data, offsets, *arguments)
        return Encoded(ids[:num], ends)


def _plain_pieces(tokenizer: SentencePieceTokenizer) -> list[tuple[str, float]] | None:
    """The pieces with their scores, of a model whose rules the compiled encoder knows."""
    protos: Any = sentencepiece_model_pb2  # its classes are made at import
    model, kinds = protos.ModelProto.FromString(tokenizer.native), protos.ModelProto.SentencePiece
    words = [number for number, piece in enumerate(model.pieces) if piece.type == kinds.NORMAL]
    has_others = any(piece.type in (kinds.USER_DEFINED, kinds.UNUSED) for piece in model.pieces)
    if has_others or tokenizer.unusable or any(map(tokenizer.is_special, words)):
        return None
    cleaning, training = model.normalizer_spec, model.trainer_spec
    changes_text = cleaning.precompiled_charsmap or cleaning.add_dummy_prefix or cleaning.remove_extra_whitespaces
    marks_spaces = cleaning.escape_whitespaces and not training.treat_whitespace_as_suffix
    if changes_text or not marks_spaces or training.model_type != protos.TrainerSpec.BPE or not training.byte_fallback:
        return None
    return [(model.pieces[number].piece, model.pieces[number].score) for number in words]


def _all_merges(pieces: list[tuple[str, float]], symbols: Mapping[str, int]) -> NDArray[np.int64]:
    """Rows of left, right, rank, joined: every way to form a piece from two symbols, ranked by its score."""
    ranks = {score: rank for rank, score in enumerate(sorted({score for _, score in pieces}, reverse=True))}
    rows = [
        (symbols[piece[:cut]], symbols[piece[cut:]], ranks[score], symbols[piece])
        for piece, score in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in symbols and piece[cut:] in symbols
    ]
    return np.array(rows, np.int64).reshape(-1, 4)


class _ByteLevelEncoder:
    """Tokens are joined from bytes, whose symbols are their tokens' ids."""

    def __init__(self, tokenizer: HFTokenizer, pattern: int) -> None:
        file = json.loads(tokenizer.native)
        model, ids = file["model"], file["model"]["vocab"]
        self._tokenizer, self._pattern = tokenizer, pattern
        self._frame = np.array([tokenizer.bos_id, tokenizer.eos_id], np.int32)
        self._classes = character_classes()
        of_bytes = np.zeros(256, np.int32)
        for character, byte in byte_of_character().items():
            of_bytes[byte] = ids[character]
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        rows = [(ids[left], ids[right], rank, ids[left + right]) for rank, (left, right) in enumerate(pairs)]
        merges = np.array(rows, np.int64).reshape(-1, 4)
        self._merges = _merges_table(merges, of_bytes, of_bytes, max(ids.values()) + 1, is_bytes=True)
        whole = ids if model.get("ignore_merges") else {}  # units that are tokens, whatever their merges make of them
        self._cache = _empty_cache(_UNITS + len(whole))
        for token, number in whole.items():
            unit = np.array([byte_of_character()[character] for character in token], np.uint8)
            compiled_bpe.put(unit, np.array([number], np.int32), self._cache)
        self._added = "|".join(re.escape(added["content"]) for added in file["added_tokens"])

    def __call__(self, texts: pa.StringArray) -> Encoded:
        """The ids of texts."""
        has_added = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(self._added)).to_numpy(
            False
        )
        if not has_added.any():
            return self._encode(texts)
        cuts = [0, *(np.flatnonzero(np.diff(has_added)) + 1).tolist(), len(texts)]
        parts = [(texts.slice(start, end - start), has_added[start]) for start, end in pairwise(cuts)]
        return _joined(
            [_by_library(self._tokenizer, own) if by_library else self._encode(own) for own, by_library in parts]
        )

    def _encode(self, texts: pa.StringArray) -> Encoded:
        data, offsets = _bytes_of(texts)
        ids, ends = np.empty(len(data) + 2 * len(texts), np.int32), np.empty(len(texts), np.int64)
        arguments = (self._merges, self._classes, self._pattern, self._cache, self._frame, ids, ends)
        num = compiled_cutting.encode_by_pattern(data, offsets, *arguments)
        return Encoded(ids[:num], ends)


def _known_pattern(tokenizer: HFTokenizer) -> int | None:
    """The pattern that cuts texts, for a byte-level BPE whose rules the compiled encoder knows."""
    file = json.loads(tokenizer.native)
    model, cutting, added = file["model"], file["pre_tokenizer"], {token["content"] for token in file["added_tokens"]}
    is_plain = model["type"] == "BPE" and not any(model.get(rule) for rule in _OTHER_RULES) and not file["normalizer"]
    table, longest = byte_of_character(), LONGEST_CACHED
    if not is_plain or tokenizer.unusable or not tokenizer.special_ids.keys() <= added:
        return None
    if not table.keys() <= model["vocab"].keys() or not all(table.keys() >= set(token) for token in model["vocab"]):
        return None
    if model.get("ignore_merges") and max(map(len, model["vocab"])) > longest:
        return None
    return next((pattern for pattern, known in _PATTERNS.items() if known == cutting), None)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_OTHER_RULES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
_PATTERNS = {
    compiled_cutting.GPT2: _byte_level(use_regex=True),
    compiled_cutting.LLAMA3: _split_by(LLAMA3_PATTERN),
    compiled_cutting.QWEN2: _split_by(QWEN2_PATTERN),
}


@cache
def character_classes() -> NDArray[np.uint8]:
    """The class of each code point, as the library's regular expressions have it, whose Unicode is older than
    Python's. No plane from 4 on has a letter, a number or a space."""
    text = "".join(chr(code) for code in range(0x40000) if not 0xD800 <= code < 0xE000)
    classes = np.full(_NUM_CODES, compiled_cutting.OTHER, np.uint8)
    kinds = {r"\P{L}": compiled_cutting.LETTER, r"\P{N}": compiled_cutting.NUMBER, r"\S": compiled_cutting.SPACE}
    for others, kind in kinds.items():
        members = normalizers.Replace(Regex(others + "+"), "").normalize_str(text)
        classes[[ord(character) for character in members]] = kind
    classes[[ord("\r"), ord("\n")]] = compiled_cutting.NEWLINE
    return classes


def _joined(parts: list[Encoded]) -> Encoded:
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    ends = [start + part.ends for start, part in zip(starts[:-1], parts, strict=True)]
    return Encoded(np.concatenate([part.ids for part in parts]), np.concatenate(ends))


def _merges_table(
    merges: NDArray[np.int64], symbols: NDArray[np.int32], of_bytes: NDArray[np.int32], num_ids: int, *, is_bytes: bool
) -> compiled_bpe.Merges:
    """Merges, rows of left, right, rank, joined, as compiled loops read them."""
    bits = max(8, (2 * len(merges)).bit_length())
    keys = np.full(1 << bits, compiled_bpe.EMPTY, np.uint64)
    ranks, joined = np.zeros((2, 1 << bits), np.int32)
    table = compiled_bpe.Merges(symbols, keys, ranks, joined, bits, of_bytes, num_ids, is_bytes)
    compiled_bpe.fill_pairs(*merges.T, table)
    return table


def _empty_cache(num_units: int) -> compiled_bpe.Cache:
    """A cache of no units, with room for about so many."""
    num_places = 1 << (2 * num_units - 1).bit_length()
    hashes, places = np.zeros(num_places, np.uint64), np.zeros((num_places, 4), np.int32)
    data, ids = np.zeros(24 * num_units, np.uint8), np.zeros(6 * num_units, np.int32)
    return compiled_bpe.Cache(hashes, places, data, ids, np.zeros(3, np.int64))


def _bytes_of(texts: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of texts, one after the other, and where each begins, with the end of the last."""
    data, offsets = utf8(texts)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]
