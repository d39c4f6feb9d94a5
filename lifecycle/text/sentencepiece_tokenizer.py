"""SentencePiece: training with settings that keep every character, and the model behind the common interface.

What must hold: `decode(encode(text)) == text` for every text. So there is no normalisation, no dummy prefix, no removed
space, and characters outside the vocabulary become bytes, unless a user has them become `<unk>`. SentencePiece writes a
space as U+2581, so that character itself would come back as a space: it is encoded as its three bytes, or as `<unk>`.

The settings were chosen on 9.1 MB of the Python standard library (vocabulary 4,096, 0.5 MB held out; bits per byte of
an interpolated Witten-Bell trigram over the tokens of the training text):

| pieces may cross            | bytes per token | bits per byte |
|-----------------------------|-----------------|---------------|
| nothing                     | 3.44            | 1.407         |
| letters to punctuation      | 3.76            | 1.414         |
| spaces (chosen)             | 3.80            | 1.398         |
| both                        | 4.22            | 1.412         |

Unigram with the second setting: 3.63 bytes per token, and 12.6 CPU seconds instead of 0.3 on 2 MB.

Kudo and Richardson, "SentencePiece", 2018; Sennrich et al., "Neural Machine Translation of Rare Words with Subword
Units", 2016.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import sentencepiece

from lifecycle.core.config import ConfigError
from lifecycle.text.framing import adds_bos, adds_eos, framing_ids, listed_specials, names_bos
from lifecycle.text.interface import (
    BOS,
    EOS,
    IM_END,
    IM_START,
    PAD,
    UNK,
    Span,
    Tokenizer,
    TokenizerError,
    read_config,
    write_config,
)
from lifecycle.text.sentencepiece_json import write_tokenizer_json

KIND = "sentencepiece"
MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
THREADS = 2  # 9.6 MB encode in 1.8 CPU seconds, 1.0 s of wall time on two cores
SPACE = "\u2581"  # how SentencePiece writes a space
LEAD = "\ufdd0"  # a character that is in no piece
SPECIALS = (UNK, BOS, EOS, PAD, IM_START, IM_END)
NUM_BYTES = 256
SMALLEST_VOCABULARY = len(SPECIALS) + 26  # beside bytes: special tokens, and some room to learn
# A bare model file does not say which of its user-defined pieces are special: these shapes are.
SPECIAL_SHAPE = re.compile(r"<\|[^|<>]+\|>|<(start|end)_of_turn>")


class SentencePieceTokenizer(Tokenizer):
    """A `tokenizer.model`; special tokens are its control pieces and those that `tokenizer_config.json` lists.

    An existing model keeps its own normalisation: with a dummy prefix each separately encoded part begins with a space.
    """

    def __init__(self, path: Path) -> None:
        self._model = path.read_bytes()
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(self._model)
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(f"{path}: not a SentencePiece model ({error}); train or copy it again") from None
        self.vocab_size = self.processor.vocab_size()
        self.unknown_id = self.processor.unk_id()
        json_path = path.with_name(JSON_FILE)  # the same vocabulary for other tools; kept by `save`
        self._json = json_path.read_bytes() if json_path.is_file() else None
        config = read_config(path.parent)
        self._pieces: list[str] = self.processor.id_to_piece(list(range(self.vocab_size)))
        self._bytes = [self._piece_bytes(i, piece) for i, piece in enumerate(self._pieces)]
        self.special_ids = self._find_specials(listed_specials(config))
        self.bos_id, self.eos_id, self.pad_id = framing_ids(self._names() | config, self.special_ids, str(path))
        # A model may add a space before the text; then the first piece of "a" is not "a" alone.
        self.strips_leading_space = self.processor.encode("a", out_type=str)[0].startswith(SPACE)
        # transformers' LlamaTokenizer with `legacy: false` adds it to the first text only.
        self._adds_one_space = self.strips_leading_space and config.get("legacy") is False
        self.has_bos = names_bos(self._names() | config, self.special_ids)
        self.adds_bos = adds_bos(config, self.has_bos, default=True)
        self.adds_eos = adds_eos(config, default=False)

    @property
    def native(self) -> bytes:
        """The bytes of the SentencePiece model."""
        return self._model

    def _names(self) -> dict[str, str]:
        ids = {"bos_token": self.processor.bos_id(), "eos_token": self.processor.eos_id()}
        ids["pad_token"] = self.processor.pad_id()
        return {key: self._pieces[token_id] for key, token_id in ids.items() if token_id >= 0}

    def _find_specials(self, listed: list[str]) -> dict[str, int]:
        wanted, unknown = set(listed), self.unknown_id
        control = self.processor.is_control(list(range(self.vocab_size)))
        return {
            piece: i
            for i, piece in enumerate(self._pieces)
            if i != unknown and (control[i] or piece in wanted or SPECIAL_SHAPE.fullmatch(piece))
        }

    def _piece_bytes(self, token_id: int, piece: str) -> bytes:
        if token_id == self.unknown_id:
            return "\ufffd".encode()
        if self.processor.is_byte(token_id):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()

    def _bytes_of(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        if len(texts) > 1 and not any(SPACE in text for text in texts):
            return self.processor.encode(texts, num_threads=THREADS)  # starts threads: 60 us, too much for one line
        return [self._encode_with_space_marks(t) if SPACE in t else self.processor.encode(t) for t in texts]

    def _encode_with_space_marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(SPACE)):
            ids += self._space_mark * (i > 0) + self.processor.encode(part)
        return ids

    @cached_property
    def _space_mark(self) -> list[int]:
        """The bytes of the character that SentencePiece itself writes for a space; of a model without bytes one that
        stands for what is unknown."""
        found = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        return found[:1] if found[0] == self.unknown_id else found

    def _spans(self, text: str, is_first: bool) -> list[Span]:
        lead = LEAD if self._adds_one_space and not is_first else ""  # takes the space
        spans: list[Span] = []
        position = -len(lead)
        for part in (lead + text).split(SPACE):
            if position > 0:
                spans += [(i, position - 1, position) for i in self._space_mark]
            row = self.processor.encode(part, return_type="offset_mapping")
            pairs = zip(row["ids"], row["offsets"], strict=True)
            spans += [(i, position + start, position + stop) for i, (start, stop) in pairs]
            position += len(part) + 1
        return [span for span in spans if span[1] >= 0]

    def save(self, folder: Path) -> None:
        """Writes the model, `tokenizer.json` if there is one, and `tokenizer_config.json`."""
        (folder / MODEL_FILE).write_bytes(self._model)
        if self._json is not None:
            (folder / JSON_FILE).write_bytes(self._json)
        tokenizer_class = "LlamaTokenizer" if self._json is None else "PreTrainedTokenizerFast"
        unk = self._pieces[self.processor.unk_id()]
        legacy = {"legacy": False} if self._adds_one_space else {}
        write_config(folder, self, KIND, tokenizer_class=tokenizer_class, unk_token=unk, **legacy)


@dataclass(frozen=True)
class TrainingRules:
    """What tokens may be: several digits, several words, single bytes; and special tokens beside `SPECIALS`."""

    split_digits: bool = True
    across_words: bool = True
    byte_fallback: bool = True
    special_tokens: tuple[str, ...] = ()


DEFAULT_RULES = TrainingRules()


def train_sentencepiece(
    texts: Iterable[str], out: Path, vocab_size: int, model_type: Literal["bpe", "unigram"],
    rules: TrainingRules = DEFAULT_RULES,
) -> None:  # fmt: skip
    """Trains on `texts` (pieces of a few thousand characters at most) and writes the model into `out`.

    Raises `ConfigError` if there is too little text for the vocabulary.
    """
    smallest = SMALLEST_VOCABULARY + len(rules.special_tokens) + NUM_BYTES * rules.byte_fallback
    if vocab_size < smallest:
        needed = "256 bytes and the special tokens" if rules.byte_fallback else "the special tokens"
        raise ConfigError(f"tokenizer.vocab_size={vocab_size}: {needed} need {smallest}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, model_type=model_type,
            byte_fallback=rules.byte_fallback, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            split_by_whitespace=not rules.across_words, split_digits=rules.split_digits,
            character_coverage=0.9999, max_sentence_length=1 << 16, num_threads=THREADS,
            unk_id=0, bos_id=1, eos_id=2, pad_id=3, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS, pad_piece=PAD,
            control_symbols=[IM_START, IM_END, *rules.special_tokens], minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        has_more_characters = "smaller than required_chars" in str(error)
        fix = "a larger vocab_size" if has_more_characters else "more text (sample_bytes) or a smaller vocab_size"
        raise ConfigError(
            f"tokenizer: SentencePiece cannot train vocab_size={vocab_size} on this text ({error}); give it {fix}"
        ) from None
    (out / MODEL_FILE).write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer(out / MODEL_FILE)
    write_tokenizer_json(tokenizer.processor, model_type, tokenizer.special_ids, out / JSON_FILE)
    SentencePieceTokenizer(out / MODEL_FILE).save(out)
