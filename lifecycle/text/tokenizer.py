"""Trains and loads tokenizers of any kind.

A tokenizer is a folder: the native file (`tokenizer.model`, `tokenizer.json`, none for bytes), `tokenizer_config.json`
and `chat_template.jinja`, in the layout that other tools open. What must hold: the same texts, settings and seed give
the same vocabulary, whatever the order of the texts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.fetched import Place, is_stored, local_copy
from lifecycle.core.files import write_text
from lifecycle.core.web import web_file, web_folder
from lifecycle.core.web_address import WebAddress, is_on_web, shown
from lifecycle.text import byte_level, byte_tokenizer, hf_tokenizer, sentencepiece_tokenizer
from lifecycle.text.byte_level import train_byte_level
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, TEMPLATE_FILE, read_template
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.interface import CONFIG_FILE, ROWS_KEY, Tokenizer, TokenizerError, read_config, write_framing
from lifecycle.text.sampling import sample_chunks
from lifecycle.text.sentencepiece_tokenizer import SentencePieceTokenizer, TrainingRules, train_sentencepiece
from lifecycle.text.stream import StreamDecoder

__all__ = [
    "StreamDecoder",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerError",
    "load_tokenizer",
    "train_tokenizer",
]

FILES = ("tokenizer.json", "tokenizer.model", CONFIG_FILE, "special_tokens_map.json", TEMPLATE_FILE)  # of its folder
NATIVE = (".json", ".model")


class TokenizerConfig(Section):
    """The tokenizer: trained on a sample of the kept text, or an existing one at `path`."""

    kind: Literal["sentencepiece", "hf", "bytes"] = "sentencepiece"
    vocab_size: int = Field(default=4096, ge=1)
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: int = Field(
        default=4_000_000, ge=1
    )  # 1, 2, 4, 8 MB of source: 3.74, 3.77, 3.78, 3.80 bytes per token
    # A source and language of n bytes is in the sample in proportion to n ** balance, 1 as in the corpus. With 0.7 for
    # 1, Debian's documentation has 0.8 % fewer bytes per token, its Spanish, Chinese and Russian 5 to 6 % more.
    balance: float = Field(default=0.7, ge=0, le=1)
    # Whether each digit is a token of its own; whether a token may have several words or lines (more text in a token,
    # most of all in source code; of SentencePiece, by default it may); whether a character outside the vocabulary
    # becomes its bytes, or `<unk>` and is lost; and tokens beside those of the chat template.
    split_digits: bool = True
    across_words: bool | None = None
    byte_fallback: bool = True
    special_tokens: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = ()
    path: Place | None = None  # a folder or a native file, or its address

    @property
    def is_trained(self) -> bool:
        """Whether the run trains it, on the text that it keeps."""
        return self.kind != "bytes" and self.path is None

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> "TokenizerConfig":
        if self.kind == "bytes" and self.path is not None:
            raise ValueError("kind=bytes has no file: remove tokenizer.path")
        if not self.is_trained and (trains := _OF_TRAINING & self.model_fields_set):
            raise ValueError(f"{min(trains)} is of a tokenizer that is trained: remove it, or tokenizer.path and kind")
        if self.kind == "hf" and self.is_trained:
            if self.model_type != "bpe":
                raise ValueError("kind=hf trains BPE: for unigram set kind=sentencepiece")
            if self.across_words:
                raise ValueError("kind=hf trains tokens within words: for tokens across_words set kind=sentencepiece")
            if not self.byte_fallback:
                raise ValueError("kind=hf is made of bytes: for a vocabulary without them set kind=sentencepiece")
        known = [*_SPECIALS.get(self.kind, ()), *self.special_tokens]
        if doubled := [name for name in known if known.count(name) > 1]:
            raise ValueError(f"special_tokens: {doubled[0]!r} is there already; remove it")
        return self


_OF_TRAINING = {"balance", "split_digits", "across_words", "byte_fallback", "special_tokens"}
_SPECIALS = {"sentencepiece": sentencepiece_tokenizer.SPECIALS, "hf": byte_level.SPECIALS}


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], out: Path, seed: int, is_published: bool = False
) -> dict[str, Any]:
    """Writes the configured tokenizer and its chat template into `out`; returns stats.

    `texts` are read once, and only when training, on a uniform sample of them. An existing tokenizer brings its own
    template, if it has one. `is_published`: it is for published weights, so texts get BOS and EOS as its own files say,
    and not as those of models trained here.
    """
    out.mkdir(parents=True, exist_ok=True)
    stats: dict[str, Any] = {"kind": config.kind}
    template: str | None = DEFAULT_TEMPLATE
    if config.kind == "bytes":
        ByteTokenizer().save(out)
    elif config.path is not None:
        path = tokenizer_at(config.path)
        existing, folder = _load_as(config.kind, path, config.path), path.parent if path.is_file() else path
        existing.save(out)
        if is_published and "kind" not in read_config(folder):
            write_framing(out, existing)
        template = read_template(folder)
    else:
        chunks = sample_chunks(texts, config.sample_bytes, seed)
        if not chunks:
            raise ConfigError("tokenizer: there is no text to train on; check the documents stage's kept documents")
        _train(config, chunks, out)
        stats |= {"model_type": config.model_type, "sample_bytes": sum(len(c.encode()) for c in chunks)}
    if template is not None:
        write_text(out / TEMPLATE_FILE, template)
    tokenizer = load_tokenizer(out)
    return stats | {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_tokens": list(tokenizer.special_ids),
    }


def _train(config: TokenizerConfig, chunks: list[str], out: Path) -> None:
    size, digits, specials = config.vocab_size, config.split_digits, config.special_tokens
    if config.kind == "hf":
        train_byte_level(chunks, out, size, split_digits=digits, special_tokens=specials)
        return
    rules = TrainingRules(digits, config.across_words is not False, config.byte_fallback, specials)
    train_sentencepiece(chunks, out, size, config.model_type, rules)


def tokenizer_at(place: str) -> Path:
    """A tokenizer's folder or native file on this machine: its path, or the copy of what is at its address, whose path
    ends in `.json` or `.model` if it is a file's. Raises `StoreError`."""
    if is_on_web(place):
        return web_file(place) if WebAddress.of(place).path.endswith(NATIVE) else web_folder(place, FILES)
    return local_copy(place, lambda name: name in FILES or place.endswith(name)) if is_stored(place) else Path(place)


def load_tokenizer(path: Path | str, num_rows: int | None = None) -> Tokenizer:
    """Reads a tokenizer's folder, or its native file; for a model of `num_rows` ids it gives up the others. Without
    `num_rows` the folder's own `model_rows` counts, which an import writes (`write_rows`).

    Raises `TokenizerError` for files that cannot be read, and for the tokenizer of a larger model (`Tokenizer.limit`).
    """
    path = Path(path)
    tokenizer = _load(path)
    if num_rows is None:
        num_rows = read_config(path.parent if path.is_file() else path).get(ROWS_KEY)
    if num_rows is not None:
        tokenizer.limit(num_rows)
    return tokenizer


def _load(path: Path) -> Tokenizer:
    if path.is_file():
        return SentencePieceTokenizer(path) if path.suffix == ".model" else HFTokenizer(path)
    if (path / sentencepiece_tokenizer.MODEL_FILE).is_file():
        return SentencePieceTokenizer(path / sentencepiece_tokenizer.MODEL_FILE)
    if (path / hf_tokenizer.JSON_FILE).is_file():
        return HFTokenizer(path / hf_tokenizer.JSON_FILE)
    if read_config(path).get("kind") == byte_tokenizer.KIND:
        return ByteTokenizer()
    wanted = f"{sentencepiece_tokenizer.MODEL_FILE}, {hf_tokenizer.JSON_FILE} or a bytes {CONFIG_FILE}"
    raise TokenizerError(f"{path}: no tokenizer here; expected {wanted}")


def _load_as(kind: str, path: Path, place: str) -> Tokenizer:
    tokenizer = load_tokenizer(path)
    loaded_kind = "sentencepiece" if isinstance(tokenizer, SentencePieceTokenizer) else "hf"
    if loaded_kind != kind:
        raise ConfigError(
            f"tokenizer.path={shown(place)} holds a {loaded_kind} tokenizer; set tokenizer.kind={loaded_kind}"
        )
    return tokenizer
