"""The interface of tokenizers: text to ids and back, and special ids.

What must hold: `encode` never returns a special id. Special tokens come from a template or from the code that frames a
document, so a user who types `<|im_end|>` gets the ids of those ten characters and cannot end a turn. Text is rebuilt
from bytes: `decode(ids)` is the concatenation of `token_bytes(id)`, read as UTF-8. No id is returned that the model has
no row for.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.config import digest
from lifecycle.core.files import write_text
from lifecycle.core.json_file import read_json

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CONFIG_FILE = "tokenizer_config.json"
ROWS_KEY = "model_rows"  # our key in it: the number of ids of the model, if the tokenizer has more

type MarkedText = tuple[str, int | None]  # text, or the name of a special token and its id
type Span = tuple[int, int, int]  # a token's id, and the characters [start, stop) of the text that it is from


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or does not match its use."""


class Tokenizer(ABC):
    """Base of all tokenizers; a kind implements `_encode_plain`, `_spans`, `_bytes_of` and the special ids.

    `bos_id`, `eos_id` and `pad_id` are always set: a vocabulary without one of them uses its end-of-text token instead.
    `strips_leading_space` is true if encoding adds a space before the text, which `decode` removes. `adds_bos` and
    `adds_eos` say whether a text by itself begins with BOS and ends with EOS: always for models trained here, else as
    the published files say. `unknown_id` stands for characters that the vocabulary cannot write: they are lost.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    special_ids: dict[str, int]
    unknown_id: int | None = None
    has_bos: bool = True  # whether BOS is a token of its own, not EOS in its place
    strips_leading_space: bool = False
    adds_bos: bool = True
    adds_eos: bool = True
    _unusable: Mapping[int, str] = {}  # names of ids for which the model has no row

    @abstractmethod
    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; may contain special ids if the vocabulary matches them in text."""

    @abstractmethod
    def _spans(self, text: str, is_first: bool) -> list[Span]:
        """The same ids with their characters; `is_first` is false for text that follows a special token."""

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

    def difference(self, other: "Tokenizer") -> str | None:
        """The first way in which ids here mean something else than in another tokenizer; None: there is none, even if
        the two cut texts in different ways, or are for models of which one has rows for fewer ids."""
        if self.fingerprint == other.fingerprint:
            return None
        if self.vocab_size != other.vocab_size:
            return f"{self.vocab_size} ids, not {other.vocab_size}"
        pairs = ((i, self._shown(i), other._shown(i)) for i in range(self.vocab_size))
        return next((f"id {i} is {own}, not {its}" for i, own, its in pairs if own != its), None)

    def num_same(self, other: "Tokenizer") -> int:
        """How many of the first ids are the same tokens in another tokenizer."""
        num = min(self.vocab_size, other.vocab_size)
        return next((i for i in range(num) if self._shown(i) != other._shown(i)), num)

    def _shown(self, token_id: int) -> str:
        return f"{'the special token ' if self.is_special(token_id) else ''}{self.token_bytes(token_id)!r}"

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text has at least its own bytes divided by this many tokens."""
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def limit(self, num_rows: int) -> None:
        """Gives up ids from `num_rows` on, for a model whose vocabulary ends there: they are not encoded any more.

        Published files may have some: names added for other parts of the model (Gemma 3's `<image_soft_token>`).
        Raises `TokenizerError` if any of the others is a word, BOS or EOS: then it is another model's tokenizer.
        """
        unusable = {i: self.token_bytes(i).decode(errors="replace") for i in range(num_rows, self.vocab_size)}
        if wrong := [i for i in unusable if i in (self.bos_id, self.eos_id) or not self._is_added(i)]:
            raise TokenizerError(
                f"the tokenizer has {self.vocab_size} ids, model.vocab_size={num_rows}: the model has no row for "
                f"{unusable[wrong[0]]!r} (id {wrong[0]}); use the tokenizer and the config.json of one model"
            )
        self._unusable = unusable
        self.vocab_size = min(self.vocab_size, num_rows)
        self.pad_id = self.pad_id if self.pad_id < num_rows else self.eos_id

    @property
    def unusable(self) -> list[str]:
        """Names of the ids that `limit` gave up."""
        return [name for name in self._unusable.values() if name]

    def _is_added(self, token_id: int) -> bool:
        """Whether an id is no word that ordinary text is made of."""
        return self.is_special(token_id)

    def begin(self, ids: Sequence[int]) -> list[int]:
        """The context that begins with `ids`: with BOS if the model's contexts have it.

        An empty context is BOS, or EOS without one, as in lm-evaluation-harness 0.4.9 (`prefix_token_id`).
        """
        return [self.bos_id, *ids] if self.adds_bos or not ids else list(ids)

    def frame(self, ids: Sequence[int], ends: bool | None = None) -> list[int]:
        """A text of its own: with BOS and EOS as `adds_bos` and `adds_eos` say, once, also where `ids` have them.

        `ends=True` gives it EOS, `ends=False` none, whatever `adds_eos` says.
        """
        begun = [self.bos_id] if self.adds_bos and list(ids[:1]) != [self.bos_id] else []
        ended = [self.eos_id] if (self.adds_eos if ends is None else ends) and list(ids[-1:]) != [self.eos_id] else []
        return [*begun, *ids, *ended]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special ids; raises `TokenizerError` for text that is not valid Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; with several threads if the tokenizer's library has them."""
        for index, text in enumerate(texts):
            _require_unicode(text, index)
        rows = self._encode_plain(list(texts))
        rows = [r if self._special.isdisjoint(r) else self._encode_apart(t) for r, t in zip(rows, texts, strict=True)]
        if self._unusable:
            for row in rows:
                self.require_rows(row)
        return rows

    def encode_spans(self, text: str, is_first: bool = True) -> list[Span]:
        """As `encode`, with the characters that each token is from; one of no width comes before its text.

        `is_first` is false for text that follows a special token: some tokenizers add a space to the first text only.
        """
        _require_unicode(text, 0)
        spans = self._spans(text, is_first)
        if not self._special.isdisjoint(token_id for token_id, _, _ in spans):
            spans = [
                (token_id, cut + start, cut + stop)
                for cut, end in pairwise(self._cuts(text))
                for token_id, start, stop in self._spans(text[cut:end], is_first and cut == 0)
            ]
        self.require_rows([token_id for token_id, _, _ in spans])
        return spans

    def encode_marked(self, text: str, names: Collection[str] | None = None) -> list[int]:
        """Ids of a text in which the names of special tokens, or of those in `names`, are these tokens.

        Whoever wrote the text can make turns in it: only for what the run says is framed already, such as ChatML in a
        column of text. Raises `TokenizerError` for a name that is no special token.
        """
        if unknown := [name for name in names or () if name not in self.special_ids]:
            raise TokenizerError(f"{unknown[0]!r} is no special token; known: {', '.join(self.special_ids)}")
        parts: list[MarkedText] = []
        for part, special in self.split_specials(text):
            kept = special if names is None or part in names else None
            is_joined = kept is None and bool(parts) and parts[-1][1] is None
            parts = [*parts[:-1], (parts[-1][0] + part, None)] if is_joined else [*parts, (part, kept)]
        return [token_id for token_id, _, _ in self.encode_parts(parts)]

    def encode_parts(self, parts: Sequence[MarkedText], each_is_first: bool = False) -> Iterator[Span]:
        """Tokens of texts and special tokens that follow each other, with their characters in the whole.

        A text between special tokens is encoded as one, as the tokenizer's library does it with the whole. With
        `each_is_first` each text is encoded as if nothing were before it.
        """
        start = 0
        for number, (text, special) in enumerate(parts):
            first, start = start, start + len(text)
            if special is not None:
                self.require_rows([special])
                yield special, first, start
                continue
            if number and self._takes_spaces(parts[number - 1])[1]:
                first, text = first + len(text) - len(text.lstrip()), text.lstrip()
            if number + 1 < len(parts) and self._takes_spaces(parts[number + 1])[0]:
                text = text.rstrip()
            spans = self.encode_spans(text, is_first=each_is_first or first == 0)
            yield from ((token_id, first + begin, first + end) for token_id, begin, end in spans)

    def _takes_spaces(self, part: MarkedText) -> tuple[bool, bool]:
        return (False, False) if part[1] is None else self.strips(part[1])

    def require_rows(self, ids: Iterable[int]) -> None:
        """Raises `TokenizerError` naming a token for which the model has no row."""
        if found := next((i for i in ids if i in self._unusable), None):
            raise TokenizerError(
                f"the model has no row for {self._unusable[found]!r}, token {found}: its vocabulary ends at "
                f"{self.vocab_size - 1}; remove it"
            )

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

    def strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether a special token takes the spaces before and after it from the text (`lstrip`, `rstrip`)."""
        return False, False

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
        parts = [text[a:b] for a, b in pairwise(self._cuts(text))]
        return [token_id for row in self._encode_plain(parts) for token_id in row]

    def _cuts(self, text: str) -> list[int]:
        return [0, *(match.start() + 1 for match in self.special_pattern.finditer(text)), len(text)]

    def split_specials(self, text: str) -> list[MarkedText]:
        """A template's own text in parts: names of special tokens with their ids, and what is between them."""
        parts: list[MarkedText] = []
        position = 0
        for match in self.special_pattern.finditer(text):
            parts += [(text[position : match.start()], None), (match.group(), self.special_ids[match.group()])]
            position = match.end()
        return [part for part in [*parts, (text[position:], None)] if part[0]]


def _require_unicode(text: str, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text {index}: character {error.start} is a lone surrogate, which UTF-8 cannot encode; "
            "read the file with errors='replace'"
        ) from None


def write_config(folder: Path, tokenizer: Tokenizer, kind: str, **more: Any) -> None:
    """Writes `tokenizer_config.json` in the layout that other tools read; its `kind` marks a model trained here."""
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
    content |= {ROWS_KEY: tokenizer.vocab_size} if tokenizer.unusable else {}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_framing(folder: Path, tokenizer: Tokenizer) -> None:
    """Notes in `tokenizer_config.json` how a published tokenizer frames a text, in place of what models trained here
    have: `tokenizer` is as it was published."""
    config = {key: value for key, value in read_config(folder).items() if key != "kind"}
    config |= {"add_bos_token": tokenizer.adds_bos, "add_eos_token": tokenizer.adds_eos}
    config |= {} if tokenizer.has_bos else {"bos_token": None}
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def write_rows(folder: Path, num_rows: int) -> None:
    """Notes in `tokenizer_config.json` that the model has fewer ids than the tokenizer."""
    write_text(folder / CONFIG_FILE, json.dumps(read_config(folder) | {ROWS_KEY: num_rows}, indent=1) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a folder, or an empty mapping when there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    return read_json(path, TokenizerError)
