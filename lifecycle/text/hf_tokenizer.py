"""An HF `tokenizer.json` behind the common interface.

What must hold: text is rebuilt from each token's own bytes. That is possible for byte-level vocabularies (GPT-2, Llama
3, Qwen) and for those with a space mark and byte fallback (Llama 2, Gemma); other decoders are rejected. `token_bytes`
follows the byte-to-character table of Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
section 2.2.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from lifecycle.text.framing import adds_bos, adds_eos, framing_ids, listed_specials, names_bos, token_name
from lifecycle.text.interface import Span, Tokenizer, TokenizerError, read_config, write_config

KIND = "hf"
JSON_FILE = "tokenizer.json"
SPACE = "\u2581"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class HFTokenizer(Tokenizer):
    """A `tokenizer.json`; special tokens are those the file marks as special and those its config lists.

    It keeps its own normalisation: if that loses text, `decode(encode(text))` is the normalised text.
    """

    def __init__(self, path: Path) -> None:
        self._json = path.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self._json)
        except ValueError as error:
            raise TokenizerError(f"{path}: not a tokenizer.json ({error}); download or copy it again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._tokens = {token_id: token for token, token_id in vocabulary.items()}
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._strips = {token_id: (token.lstrip, token.rstrip) for token_id, token in added.items()}
        self._before = next(((t.content, i) for i, t in added.items() if t.special and not t.rstrip), None)
        config = read_config(path.parent)
        names = [t.content for t in added.values() if t.special] + listed_specials(config)
        framing = {token_name(config, key) for key in ("bos_token", "eos_token", "pad_token")}
        # Encoding may return the unknown token, so it is ordinary unless it also frames text (GPT-2's end of text).
        self._unk = token_name(config, "unk_token")
        read = json.loads(self._json)
        unknown = _unknown_token(read["model"])
        unk = {self._unk or "<unk>"} - framing
        self.special_ids = {name: vocabulary[name] for name in names if name in vocabulary and name not in unk}
        self.unknown_id = None if unknown is None else vocabulary.get(unknown)
        self.bos_id, self.eos_id, self.pad_id = framing_ids(config, self.special_ids, str(path))
        if unknown in self.special_ids and self.unknown_id not in (self.bos_id, self.eos_id, self.pad_id):
            del self.special_ids[unknown]
        decoders = _decoder_types(read.get("decoder"))
        self._is_byte_level = "ByteLevel" in decoders
        if not self._is_byte_level and not decoders & {"ByteFallback", "Metaspace"}:
            kinds = ", ".join(sorted(decoders)) or "none"
            raise TokenizerError(
                f"{path}: unsupported decoder {kinds}; use a tokenizer with a byte-level or byte-fallback vocabulary"
            )
        if not (self._is_byte_level or read["model"].get("byte_fallback") or unknown is not None):
            raise TokenizerError(
                f"{path}: characters without a token would vanish; use a tokenizer with bytes or with an unknown token"
            )
        first = self._tokenizer.encode("a", add_special_tokens=False).tokens[0]
        self.strips_leading_space = first[0] in (SPACE, _space_character())
        self.has_bos = names_bos(config, self.special_ids)
        alone = self._tokenizer.encode("a").ids
        self.adds_bos = adds_bos(config, self.has_bos, default=alone[0] == self.bos_id)
        self.adds_eos = adds_eos(config, default=alone[-1] == self.eos_id)

    @property
    def native(self) -> bytes:
        """The bytes of `tokenizer.json`."""
        return self._json

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _spans(self, text: str, is_first: bool) -> list[Span]:
        """Text that follows a special token is encoded after one, since a tokenizer may treat the first text apart."""
        name, special = ("", None) if is_first or self._before is None else self._before
        row = self._tokenizer.encode(name + text, add_special_tokens=False)
        first = 0 if special is None else row.ids.index(special) + 1
        pairs = zip(row.ids[first:], row.offsets[first:], strict=True)
        return [(i, max(0, start - len(name)), max(0, stop - len(name))) for i, (start, stop) in pairs]

    def strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether a special token takes the spaces before it, and those after it, from the text."""
        return self._strips.get(token_id, (False, False))

    def _is_added(self, token_id: int) -> bool:
        return token_id in self._added or self.is_special(token_id)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokens.get(token_id, "")  # a vocabulary may have gaps
        if self._is_byte_level:
            return bytes(byte_of_character()[c] for c in token)
        if match := BYTE.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(SPACE, " ").encode()

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`."""
        (folder / JSON_FILE).write_bytes(self._json)
        unk = {} if self._unk is None else {"unk_token": self._unk}
        write_config(folder, self, KIND, tokenizer_class="PreTrainedTokenizerFast", **unk)


def _unknown_token(model: dict[str, Any]) -> str | None:
    """What a model encodes characters as that are not in its vocabulary, whatever the config calls it."""
    number = model.get("unk_id")
    return model.get("unk_token") if number is None else model["vocab"][number][0]


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoder_types(inner) for inner in decoder.get("decoders", ())))


@cache
def byte_of_character() -> dict[str, int]:
    """Printable Latin-1 characters stand for their own byte, the other 68 bytes are written from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _space_character() -> str:
    return next(character for character, byte in byte_of_character().items() if byte == 0x20)
