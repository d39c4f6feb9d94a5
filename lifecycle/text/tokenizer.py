"""Trains and loads tokenizers of any kind.

A tokenizer is a folder: the native file (`tokenizer.model`, `tokenizer.json`, none for bytes), `tokenizer_config.json`
and `chat_template.jinja`, in the layout that other tools open. What must hold: the same texts, settings and seed give
the same vocabulary, whatever the order of the texts.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.fetched import Place, is_stored, local_copy
from lifecycle.core.files import write_text
from lifecycle.core.web import web_file, web_folder
from lifecycle.core.web_address import WebAddress, is_on_web, shown
from lifecycle.text import byte_tokenizer, hf_tokenizer, sentencepiece_tokenizer
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, TEMPLATE_FILE, read_template
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.interface import CONFIG_FILE, ROWS_KEY, Tokenizer, TokenizerError, read_config, write_framing
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
CHUNK = 1000  # characters of one training piece: long enough for pieces with newlines, short enough to sample evenly


class TokenizerConfig(Section):
    """The tokenizer: trained on a sample of the kept text, or an existing one at `path`."""

    kind: Literal["sentencepiece", "hf", "bytes"] = "sentencepiece"
    vocab_size: int = Field(default=4096, ge=1)
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: int = Field(
        default=4_000_000, ge=1
    )  # 1, 2, 4, 8 MB of source: 3.74, 3.77, 3.78, 3.80 bytes per token
    # Of a trained one: whether each digit is a token of its own, whether a token may have several words or lines
    # (more text in a token, most of all in source code), and tokens beside those of the chat template.
    split_digits: bool = True
    across_words: bool = True
    special_tokens: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = ()
    path: Place | None = None  # a folder or a native file, or its address

    @property
    def is_trained(self) -> bool:
        """Whether the run trains it, on the text that it keeps."""
        return self.kind == "sentencepiece" and self.path is None

    @model_validator(mode="after")
    def _path_fits_kind(self) -> "TokenizerConfig":
        if self.kind == "hf" and self.path is None:
            raise ValueError("kind=hf loads an existing tokenizer.json: set tokenizer.path")
        if self.kind == "bytes" and self.path is not None:
            raise ValueError("kind=bytes has no file: remove tokenizer.path")
        trains = {"split_digits", "across_words", "special_tokens"} & self.model_fields_set
        if trains and not self.is_trained:
            raise ValueError(f"{min(trains)} is of a tokenizer that is trained: remove it, or tokenizer.path and kind")
        known = [*sentencepiece_tokenizer.SPECIALS, *self.special_tokens]
        if doubled := [name for name in known if known.count(name) > 1]:
            raise ValueError(f"special_tokens: {doubled[0]!r} is there already; remove it")
        return self


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], out: Path, seed: int, is_published: bool = False
) -> dict[str, Any]:
    """Writes the configured tokenizer and its chat template into `out`; returns stats.

    `texts` are read once, and only when training. An existing tokenizer brings its own template, if it has one.
    `is_published`: it is for published weights, so texts get BOS and EOS as its own files say, and not as those of
    models trained here.
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
        rules = TrainingRules(config.split_digits, config.across_words, config.special_tokens)
        train_sentencepiece(chunks, out, config.vocab_size, config.model_type, rules)
        stats |= {"model_type": config.model_type, "sample_bytes": sum(len(c.encode()) for c in chunks)}
    if template is not None:
        write_text(out / TEMPLATE_FILE, template)
    tokenizer = load_tokenizer(out)
    return stats | {
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_tokens": list(tokenizer.special_ids),
    }


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


def sample_chunks(texts: Iterable[str], sample_bytes: int, seed: int) -> list[str]:
    """A uniform sample of chunks of about `CHUNK` characters, `sample_bytes` in all.

    Each chunk's rank is a hash of its content and the seed, so the sample does not depend on the order of texts;
    memory holds the sample, never the corpus.
    """
    heap: list[tuple[int, str]] = []  # largest rank first
    size = 0
    for text in texts:
        for chunk in _chunks(text):
            heapq.heappush(heap, (-_rank(chunk, seed), chunk))
            size += len(chunk.encode())
            while size > sample_bytes and len(heap) > 1:
                size -= len(heapq.heappop(heap)[1].encode())
    return [chunk for _, chunk in sorted(heap, reverse=True)]


def _chunks(text: str) -> Iterator[str]:
    """Whole lines of about `CHUNK` characters, never with a tab: SentencePiece skips training text that has one."""
    for part in text.split("\t"):
        current = ""
        for line in part.splitlines(keepends=True):
            for start in range(0, len(line), CHUNK):
                if current and len(current) + len(line) > CHUNK:
                    yield current
                    current = ""
                current += line[start : start + CHUNK]
        if current:
            yield current


def _rank(chunk: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(chunk.encode(), digest_size=8, salt=seed.to_bytes(16, "little")).digest())
