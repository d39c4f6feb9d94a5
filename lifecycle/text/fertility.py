"""How finely a tokenizer cuts documents: bytes per token and tokens per word, by language and by source.

Tokens per word is a tokenizer's fertility (Rust et al. 2021, arXiv:2012.15613, section 4): 1 if no word is cut. A word
is a run of letters, digits and underscores, so punctuation and blanks add tokens and no words. Languages that put no
blanks between words have no such figure. Bytes per token compare tokenizers, not languages, whose letters differ in
size.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from itertools import batched, starmap
from operator import add
from typing import Any

from lifecycle.core.languages import WITHOUT_BLANKS
from lifecycle.text.interface import Tokenizer, TokenizerError

type Group = tuple[str, str]  # of documents: all, language or source, and its name

ALL: Group = ("all", "")
COLUMNS = ("text", "language", "source")  # of the documents
BATCH = 256  # documents that are encoded at a time: memory holds no more
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Size:
    """Of some documents: bytes of UTF-8, tokens without those that frame a text, how many of these stand for text that
    is lost, and of what has words also these."""

    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_unknown: int = 0
    num_words: int = 0
    num_tokens_of_words: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(*starmap(add, zip(astuple(self), astuple(other), strict=True)))

    @property
    def bytes_per_token(self) -> float:
        """More is coarser: fewer tokens for the same text."""
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def tokens_per_word(self) -> float | None:
        """Less is coarser; None where there are no words."""
        return self.num_tokens_of_words / self.num_words if self.num_words else None


def sizes(tokenizer: Tokenizer, documents: Iterable[Mapping[str, Any]]) -> dict[Group, Size]:
    """Of all documents, and of each of their languages and sources, the largest first. The documents have `COLUMNS`.
    Raises `TokenizerError` if they have no text."""
    found: defaultdict[Group, Size] = defaultdict(Size)
    for batch in batched(documents, BATCH):
        rows = tokenizer.encode_batch([document["text"] for document in batch])
        for document, ids in zip(batch, rows, strict=True):
            num_unknown = 0 if tokenizer.unknown_id is None else ids.count(tokenizer.unknown_id)
            size = _size(document["text"], document["language"], len(ids), num_unknown)
            for group in (ALL, ("language", document["language"]), ("source", document["source"])):
                found[group] += size
    if not found[ALL].num_tokens:
        raise TokenizerError("bytes per token: there is no held-out text to measure; raise data.heldout_fraction")
    kinds = ("all", "language", "source")
    return dict(sorted(found.items(), key=lambda entry: (kinds.index(entry[0][0]), -entry[1].num_bytes, entry[0])))


def as_rows(found: Mapping[Group, Size]) -> list[dict[str, Any]]:
    """JSON-ready: a row for each group."""
    return [
        {
            "of": kind, "name": name, "documents": size.num_documents, "bytes": size.num_bytes,
            "tokens": size.num_tokens, "unknown_tokens": size.num_unknown,
            "bytes_per_token": round(size.bytes_per_token, 3),
            "tokens_per_word": None if size.tokens_per_word is None else round(size.tokens_per_word, 3),
        }
        for (kind, name), size in found.items()
    ]  # fmt: skip


def _size(text: str, language: str, num_tokens: int, num_unknown: int) -> Size:
    if language in WITHOUT_BLANKS:
        return Size(1, len(text.encode()), num_tokens, num_unknown)
    return Size(1, len(text.encode()), num_tokens, num_unknown, sum(1 for _ in _WORD.finditer(text)), num_tokens)
