"""The interface of tokenizers: text to ids and back, and special ids.

What must hold: `encode` never returns a special id. Special tokens come from a template or from the code that frames a
document, so a user who types `<|im_end|>` gets the ids of those ten characters and cannot end a turn. Text is rebuilt
from bytes: `decode(ids)` is the concatenation of `token_bytes(id)`, read as UTF-8.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.config import digest, read_json
from lifecycle.core.files import write_text

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CONFIG_FILE = "tokenizer_config.json"


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or does not match its use."""


class Tokenizer(ABC):
    """Base of all tokenizers; a kind implements `_encode_plain`, `_bytes_of` and the special ids.

    `bos_id`, `eos_id` and `pad_id` are always set: a vocabulary without one of them uses its end-of-text token instead.
    `strips_leading_space` is true if encoding adds a space before the text, which `decode` removes.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    special_ids: dict[str, int]
    strips_leading_space: bool = False

    @abstractmethod
    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; may contain special ids if the vocabulary matches them in text."""

    @abstractmethod
    def _bytes_of(self, token_id: int) -> bytes:
        """The bytes of an ordinary token."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the native file and `tokenizer_config.json`."""

    @property
    @abstractmethod
    def native(self) -> bytes:
        """The content of the native file, for the fingerprint."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and of the special ids: equal fingerprints mean equal ids for every text."""
        specials = {"special": self.special_ids, "framing": [self.bos_id, self.eos_id, self.pad_id]}
        return digest({"kind": type(self).__name__, "native": self.native.hex(), **specials})

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text has at least its own bytes divided by this many tokens."""
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special ids; raises `TokenizerError` for text that is not valid Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; with several threads if the tokenizer's library has them."""
        for index, text in enumerate(texts):
            _require_unicode(text, index)
        rows = self._encode_plain(list(texts))
        return [r if self._special.isdisjoint(r) else self._encode_apart(t) for r, t in zip(rows, texts, strict=True)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._special))
        return data.removeprefix(b" " if self.strips_leading_space else b"").decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token gives its name."""
        if token_id in self._special:
            return self._special_names[token_id].encode()
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self._bytes_of(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special token's."""
        return token_id in self._special

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text behind each id, `[vocab_size]`, 0 for special ids: the denominator of bits per byte."""
        return np.array([0 if i in self._special else len(self._bytes_of(i)) for i in range(self.vocab_size)], np.int32)

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.special_ids.items()}

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches the name of a special token in a template's text, the longest name first."""
        names = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)))

    def _encode_apart(self, text: str) -> list[int]:
        """Encodes text in which names of special tokens occur: each name is cut after its first character."""
        cuts = [0, *(match.start() + 1 for match in self.special_pattern.finditer(text)), len(text)]
        parts = [text[a:b] for a, b in pairwise(cuts)]
        return [token_id for row in self._encode_plain(parts) for token_id in row]

    def encode_template(self, text: str) -> list[int]:
        """Ids of a template's own text, where names of special tokens stand for those tokens."""
        ids: list[int] = []
        position = 0
        for match in self.special_pattern.finditer(text):
            ids += self.encode(text[position : match.start()]) if match.start() > position else []
            ids.append(self.special_ids[match.group()])
            position = match.end()
        return ids + (self.encode(text[position:]) if position < len(text) else [])


def _require_unicode(text: str, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text {index}: character {error.start} is a lone surrogate, which UTF-8 cannot encode; "
            "read the file with errors='replace'"
        ) from None


def write_config(folder: Path, tokenizer: Tokenizer, kind: str, **more: Any) -> None:
    """Writes `tokenizer_config.json` in the layout that other tools read."""
    names = {token_id: name for name, token_id in tokenizer.special_ids.items()}
    bos, eos, pad = names[tokenizer.bos_id], names[tokenizer.eos_id], names[tokenizer.pad_id]
    added = {
        str(token_id): {"content": name, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for token_id, name in sorted(names.items())
    }
    content = {
        "kind": kind, "bos_token": bos, "eos_token": eos, "pad_token": pad,
        "additional_special_tokens": [n for _, n in sorted(names.items()) if n not in (bos, eos, pad)],
        "added_tokens_decoder": added, "add_bos_token": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, **more,
    }  # fmt: skip
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a folder, or an empty mapping when there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    return read_json(path, TokenizerError)


def token_name(config: Mapping[str, Any], key: str) -> str | None:
    """The name under `key`, which the layout allows as a string or as a mapping with `content`."""
    value = config.get(key)
    return value.get("content") if isinstance(value, dict) else value


def listed_specials(config: Mapping[str, Any]) -> list[str]:
    """Names of all special tokens that a `tokenizer_config.json` lists."""
    framing = [token_name(config, key) for key in ("bos_token", "eos_token", "pad_token")]
    more = [v.get("content") if isinstance(v, dict) else v for v in config.get("additional_special_tokens") or ()]
    added = [v["content"] for v in (config.get("added_tokens_decoder") or {}).values() if v.get("special")]
    return [name for name in dict.fromkeys([*framing, *more, *added]) if name]


def framing_ids(config: Mapping[str, Any], special_ids: Mapping[str, int], where: str) -> tuple[int, int, int]:
    """(bos, eos, pad): from the config's names, else from the usual names; eos stands in for a missing bos or pad."""
    eos = _first(special_ids, token_name(config, "eos_token"), EOS, "<|end_of_text|>", "<|endoftext|>", "<eos>")
    if eos is None:
        raise TokenizerError(f"{where}: no end-of-text token; name it as eos_token in {CONFIG_FILE} of the same folder")
    bos = _first(special_ids, token_name(config, "bos_token"), BOS, "<|begin_of_text|>", "<bos>")
    pad = _first(special_ids, token_name(config, "pad_token"), PAD)
    return (eos if bos is None else bos, eos, eos if pad is None else pad)


def _first(special_ids: Mapping[str, int], *names: str | None) -> int | None:
    return next((special_ids[name] for name in names if name is not None and name in special_ids), None)
