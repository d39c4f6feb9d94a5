"""Converts the tokenizer in a GGUF file's metadata to a `tokenizer.json` folder.

GGUF stores a byte-level BPE vocabulary ("gpt2") as lists: tokens, merges, a type for each token, and the *name* of the
pattern that splits text before merging; one of SentencePiece's BPE ("llama") as tokens with scores, which order the
merges. What must hold: an unknown pattern is rejected, since another one gives other ids. Sources: ggml's
`docs/gguf.md`, "Tokenizer"; llama.cpp's `src/llama-vocab.cpp`; the patterns are those of the published `tokenizer.json`
files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lifecycle.core.files import write_text
from lifecycle.text.chat import TEMPLATE_FILE
from lifecycle.text.hf_tokenizer import JSON_FILE, KIND, HFTokenizer
from lifecycle.text.interface import CONFIG_FILE, TokenizerError, read_config
from lifecycle.text.sentencepiece_json import SPACE, merges_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
FRAMING = (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"))
BPE, SENTENCEPIECE = "gpt2", "llama"  # GGUF's names of the kinds
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LATE = REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(ending: str) -> str:
    """Words that end where a capital letter follows a small one."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{UPPER}*{LOWER}+{ending}|{start}{UPPER}+{LOWER}*{ending}|"


@dataclass(frozen=True)
class Cutting:
    """How text is cut before merging: by a pattern (GPT-2's if None), and into single digits before that."""

    pattern: str | None = None
    has_single_digits: bool = False
    has_nfc: bool = False
    ignores_merges: bool = False  # a word that is a token is not merged
    adds_bos: bool = False  # for a file that does not say whether a text begins with BOS


CUTTINGS = {
    "gpt-2": Cutting(),
    "smollm": Cutting(has_single_digits=True),
    "llama-bpe": Cutting(CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST, ignores_merges=True, adds_bos=True),
    "qwen2": Cutting(CONTRACTIONS + WORDS + r"\p{N}" + REST, has_nfc=True),
    "dbrx": Cutting(CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST),  # OLMo 2
    "gpt-4o": Cutting(_cased(CONTRACTIONS + "?") + r"\p{N}{1,3}" + LATE),  # gpt-oss
    "tekken": Cutting(_cased("") + r"\p{N}" + LATE, ignores_merges=True, adds_bos=True),  # Mistral NeMo
}


GIVE = "give the folder of the model's own tokenizer with --tokenizer"


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, where: str) -> HFTokenizer:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the chat template, if the file has one."""
    kind = metadata.get("tokenizer.ggml.model")
    name = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in (BPE, SENTENCEPIECE):
        raise TokenizerError(
            f"{where}: tokenizer of kind {kind!r}; only {BPE!r} (byte-level BPE) and {SENTENCEPIECE!r} (SentencePiece "
            f"BPE) are supported: {GIVE}"
        )
    if kind == BPE and name not in CUTTINGS:
        raise TokenizerError(f"{where}: unsupported pre-tokenizer {name!r}; known: {', '.join(CUTTINGS)}: {GIVE}")
    if damage := _damage(metadata, "merges" if kind == BPE else "scores"):
        raise TokenizerError(f"{where}: its tokenizer is damaged: {damage}; copy the file again, or {GIVE}")
    cutting = CUTTINGS[name] if kind == BPE else Cutting(adds_bos=True)
    tokenizer = build(metadata, cutting) if kind == BPE else _build_sentencepiece(metadata)
    write_text(folder / JSON_FILE, tokenizer.to_str(pretty=True))  # `save` has errors of its own on a full disk
    _write_names(metadata, folder)
    HFTokenizer(folder / JSON_FILE).save(folder)
    _write_rule(metadata, folder, cutting)
    if template := metadata.get("tokenizer.chat_template"):
        write_text(folder / TEMPLATE_FILE, template)
    return HFTokenizer(folder / JSON_FILE)


def _damage(metadata: Mapping[str, Any], second: str) -> str | None:
    """Says which list is missing or inconsistent with the others, of tokens and `second`; None if all are sound."""
    tokens, order = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", second))
    if not _is_texts(tokens) or not isinstance(order, list) or (second == "merges" and not _is_texts(order)):
        return f"it has no list of tokens, or none of {second}"
    types = metadata.get("tokenizer.ggml.token_type", tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        return f"it does not have one type for each of its {len(tokens)} tokens"
    if second == "scores" and (len(order) != len(tokens) or not all(isinstance(score, float) for score in order)):
        return f"it does not have one score for each of its {len(tokens)} tokens"
    known = set(tokens)
    for merge in order if second == "merges" else []:
        if merge.count(" ") != 1 or not known.issuperset([*merge.split(" "), merge.replace(" ", "")]):
            return f"merge {merge!r} does not make a token of two tokens"
    for name, key in FRAMING:
        number = metadata.get(f"tokenizer.ggml.{key}_token_id", 0)
        if type(number) is not int or number not in range(len(tokens)):
            return f"{name} is number {number!r} of {len(tokens)} tokens"
    return None


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def build(metadata: Mapping[str, Any], cutting: Cutting) -> Tokenizer:
    """The byte-level tokenizer that the metadata describes, of which text is cut in this way."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cutting.ignores_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(cutting)
    if cutting.has_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, metadata)
    return tokenizer


def pre_tokenizer(cutting: Cutting) -> pre_tokenizers.PreTokenizer:
    """What cuts text before merging."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cutting.has_single_digits else []
    if cutting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(cutting.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cutting.pattern is None))
    return pre_tokenizers.Sequence(steps)


def _build_sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    """Pieces of text, merged in the order of their scores; a character in no piece becomes bytes."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    learned = [(token, score) for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges_of(learned), unk_token=unknown, byte_fallback=True))
    with_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    marks: list[Any] = [normalizers.Prepend(SPACE)] if with_space else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", SPACE)])
    ending: list[Any] = [decoders.Strip(" ", 1, 0)] if with_space else []
    texts: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    tokenizer.decoder = decoders.Sequence(texts)
    _add_tokens(tokenizer, metadata)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Marks the tokens that are found in text before it is cut, and of these the special ones."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    added = [(token, kind == CONTROL) for token, kind in zip(tokens, types, strict=True)
             if kind in (CONTROL, USER_DEFINED)]  # fmt: skip
    tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False) for token, is_special in added])


def _write_names(metadata: Mapping[str, Any], folder: Path) -> None:
    """The names of the framing tokens, as other tools store them next to a `tokenizer.json`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"kind": KIND}
    for name, key in FRAMING:
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            config[name] = tokens[number]
    write_text(folder / CONFIG_FILE, json.dumps(config))


def _write_rule(metadata: Mapping[str, Any], folder: Path, cutting: Cutting) -> None:
    """Whether a text begins with BOS and ends with EOS, as the file says; else BOS as llama.cpp takes it from the name
    of the pattern (`llama-vocab.cpp`), and no EOS. The file is published, not of a model trained here."""
    config = {key: value for key, value in read_config(folder).items() if key != "kind"}
    config["add_bos_token"] = bool(metadata.get("tokenizer.ggml.add_bos_token", cutting.adds_bos))
    config["add_eos_token"] = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
