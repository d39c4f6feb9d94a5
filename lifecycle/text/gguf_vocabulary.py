"""A tokenizer as GGUF metadata: what `gguf_tokenizer.py` reads, written.

What must hold: llama.cpp encodes as the tokenizer does, or nothing is written (but U+2581 in a text, which it takes for
a space). It knows how a byte-level vocabulary cuts
text by a name only, so the name is found by what is cut: the one whose pieces of `PROBE` are the tokenizer's. Sources:
ggml's `docs/gguf.md`, "Tokenizer"; llama.cpp's `src/llama-vocab.cpp`, `conversion/base.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from lifecycle.text.chat import read_template
from lifecycle.text.gguf_tokenizer import (
    BPE,
    BYTE,
    CONTROL,
    CUTTINGS,
    FRAMING,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    pre_tokenizer,
)
from lifecycle.text.hf_tokenizer import BYTE as BYTE_NAME
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.interface import TokenizerError
from lifecycle.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lifecycle.text.tokenizer import load_tokenizer

LOWEST = -1e9  # of pieces that no merge makes
# Numbers, contractions, cases, runs of spaces, lines, marks and scripts: each known pattern cuts it in its own way.
PROBE = (
    "Hello world!  It's 1 12 123 1234 12345, I'LL don't WE'RE\n\n\n  x\t\ty \r\n\r\n camelCaseWord HTTPServer a1b2 "
    "naïve Ünïcode e\u0301 straße Привет мир ٣٤٥ 你好世界 こんにちは 한국어 สวัสดี 🦙🦙🏽 --- ...!?\n/path/to/file.py "
    "$100.50 == [x]({y}) \u00a0\u3000 end/\n//\n   \n"
)  # fmt: skip

type Tokens = list[tuple[str, int]]  # text and type, by id


def vocabulary_of(folder: Path, num_rows: int) -> dict[str, Any]:
    """The keys under `tokenizer.` for a bundle's tokenizer and template, for a model of `num_rows` ids; ids without a
    token are unused.

    Raises `TokenizerError` for a vocabulary that llama.cpp does not encode with.
    """
    tokenizer = load_tokenizer(folder, num_rows)
    if isinstance(tokenizer, SentencePieceTokenizer):
        kind, tokens, more = _sentencepiece(tokenizer, str(folder))
    elif isinstance(tokenizer, HFTokenizer):
        kind, tokens, more = _hf(tokenizer, str(folder))
    else:
        raise TokenizerError(f"{folder}: llama.cpp has no tokenizer of plain bytes; train one with tokenizer.kind")
    tokens = tokens[:num_rows] + [(f"[PAD{number}]", UNUSED) for number in range(len(tokens), num_rows)]
    own: dict[str, Any] = {
        "model": kind, "tokens": [text for text, _ in tokens], "token_type": [of for _, of in tokens], **more,
        **{f"{key}_token_id": getattr(tokenizer, f"{name.removesuffix('_token')}_id") for name, key in FRAMING},
        "add_bos_token": tokenizer.adds_bos, "add_eos_token": False,
    }  # fmt: skip
    if "scores" in own:
        own["scores"] = (own["scores"] + [LOWEST] * num_rows)[:num_rows]
    if unknown := [number for number, (_, of) in enumerate(tokens) if of == UNKNOWN]:
        own["unknown_token_id"] = unknown[0]
    template = read_template(folder)
    keys = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    return keys | ({"tokenizer.chat_template": template} if template else {})


def _sentencepiece(tokenizer: SentencePieceTokenizer, where: str) -> tuple[str, Tokens, dict[str, Any]]:
    """The types of pieces have the same numbers in both formats."""
    model = sentencepiece_model_pb2.ModelProto()  # pyrefly: ignore[missing-attribute] - made at import
    model.ParseFromString(tokenizer.native)
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise TokenizerError(f"{where}: a unigram vocabulary, which llama.cpp encodes in another way; train a bpe one")
    if not model.trainer_spec.byte_fallback:
        raise TokenizerError(f"{where}: a vocabulary without single bytes, which llama.cpp needs; set byte_fallback")
    if model.normalizer_spec.remove_extra_whitespaces:
        raise TokenizerError(f"{where}: its tokenizer.model removes repeated spaces, which llama.cpp keeps")
    tokens = [
        (piece.piece, CONTROL if tokenizer.is_special(number) else piece.type)
        for number, piece in enumerate(model.pieces)
    ]
    with_space = bool(model.normalizer_spec.add_dummy_prefix)
    if with_space and (found := [text for text, kind in tokens if kind == USER_DEFINED]):
        raise TokenizerError(f"{where}: after {found[0]!r} llama.cpp would add a space, as before each text; no GGUF")
    more = {"scores": [float(piece.score) for piece in model.pieces]}
    return SENTENCEPIECE, tokens, more | {"add_space_prefix": with_space}


def _hf(tokenizer: HFTokenizer, where: str) -> tuple[str, Tokens, dict[str, Any]]:
    tree = json.loads(tokenizer.native)
    if tree["model"]["type"] != "BPE":
        raise TokenizerError(f"{where}: a vocabulary of kind {tree['model']['type']!r}; llama.cpp gets BPE only")
    own = tokenizers.Tokenizer.from_buffer(tokenizer.native)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in tree["model"]["merges"]]
    by_id = {number: text for text, number in own.get_vocab(with_added_tokens=True).items()}
    added = {number: token.special for number, token in own.get_added_tokens_decoder().items()}
    unknown = tree["model"].get("unk_token")

    def kind(number: int) -> int:
        """The type of an id's token."""
        if tokenizer.is_special(number) or added.get(number):
            return UNKNOWN if by_id[number] == unknown else CONTROL
        if number in added:
            return USER_DEFINED
        if by_id[number] == unknown:
            return UNKNOWN
        return BYTE if is_sentencepiece and BYTE_NAME.fullmatch(by_id[number]) else NORMAL

    is_sentencepiece = bool(tree["model"].get("byte_fallback"))
    tokens = [
        (by_id[number], kind(number)) if number in by_id else (f"[PAD{number}]", UNUSED)
        for number in range(max(by_id) + 1)
    ]
    if is_sentencepiece:
        return SENTENCEPIECE, tokens, _scores(tokens, merges) | {"add_space_prefix": tokenizer.strips_leading_space}
    listed = [" ".join(merge) for merge in merges]
    return BPE, tokens, {"merges": listed, "pre": _cutting_of(own, tree, where)}


def _scores(tokens: Tokens, merges: list[tuple[str, ...]]) -> dict[str, Any]:
    """Scores in the order of the merges: a piece's best is its first."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), float(-rank))
    return {"scores": [ranks.get(text, LOWEST) for text, _ in tokens]}


def _cutting_of(own: tokenizers.Tokenizer, tree: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name for how the tokenizer cuts text. Raises `TokenizerError` if none of the known ones does."""
    pieces = _pieces(own.pre_tokenizer)
    ignores = bool(tree["model"].get("ignore_merges"))
    for name, cutting in CUTTINGS.items():
        if pieces == _pieces(pre_tokenizer(cutting)) and ignores == cutting.ignores_merges:
            return name
    raise TokenizerError(
        f"{where}: its tokenizer cuts text in a way that has no name here; known to llama.cpp and here: "
        f"{', '.join(CUTTINGS)}"
    )


def _pieces(cutter: Any) -> list[str]:
    return [] if cutter is None else [piece for piece, _ in cutter.pre_tokenize_str(PROBE)]
