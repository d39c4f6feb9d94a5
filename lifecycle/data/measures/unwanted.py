"""What a run's user does not want: documents with words or addresses of a list, or that a classifier knows.

No list and no classifier is shipped. A list of words has a word or phrase on each line, in any case; whole words count,
so it serves languages that put blanks between them. A list of addresses is one of `rights.py`: hosts, which stand for
those below them too, and single addresses. A document's addresses are its own, those in its metadata and in its text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.core.config import ConfigError
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.classifier import read_classifier, score
from lifecycle.data.measures.rights import read_list
from lifecycle.data.measures.steps import DocumentStep, Limit, Rule
from lifecycle.data.ngrams import Hashes, folded_characters, ngram_hashes, word_hashes
from lifecycle.data.user_lists import list_lines, shown_entry
from lifecycle.data.web_names import canonical, host_of, hosts_above

SHOWN = 20  # lines of a list, in an error
_MARKS = re.compile(r"[!@#$%*+=^|~<>\\]")  # that people write for letters
_ADDRESS = re.compile(r"https?://[^\s<>\"'()\[\]{}|\\^`]+", re.IGNORECASE)


@dataclass(frozen=True)
class UsersFile:
    """A list or a classifier: the name of its columns, its file, and a hash of what is in it."""

    name: str
    path: str
    content: str


@dataclass(frozen=True)
class MeasureUnwanted:
    """`link_count`, the addresses in the text; for each list of words `NAME_count` and `NAME_share` of the words, for
    each list of addresses `NAME_count`, for each classifier `NAME_score`."""

    words: tuple[UsersFile, ...] = ()
    addresses: tuple[UsersFile, ...] = ()
    classifiers: tuple[UsersFile, ...] = ()
    columns: ClassVar[pa.Schema] = pa.schema([])  # of the classes that `_with_columns` makes

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a batch."""
        links = [_ADDRESS.findall(text) for text in batch["text"].to_pylist()]
        columns: list[pa.Array] = [pa.array(map(len, links), pa.int64())]
        if self.words:
            columns += _word_columns(batch["text"], self.words)
        if self.addresses:
            named = [[*own, *rest] for own, rest in zip(links, _named(batch), strict=True)]
            columns += (pa.array([_num_listed(own, file.path) for own in named], pa.int64()) for file in self.addresses)
        columns += (pa.array(score(read_classifier(Path(file.path)), batch["text"])) for file in self.classifiers)
        return pa.record_batch(columns, schema=self.columns)


@cache
def _with_columns(names: tuple[tuple[str, bool], ...]) -> type[MeasureUnwanted]:
    """The step's class with its columns, which follow from the settings: names, and whether they count."""
    schema = pa.schema([(name, pa.int64() if is_count else pa.float64()) for name, is_count in names])
    return type("MeasureUnwanted", (MeasureUnwanted,), {"columns": schema})


def unwanted_step(config: DataConfig) -> DocumentStep:
    """The step `unwanted`."""
    words = [own for own in config.lists if own.of == "words"]
    addresses = [own for own in config.lists if own.of == "addresses"]
    names = [("link_count", True)]
    rules: list[Rule] = []
    for own in words:
        names += [(f"{own.name}_count", True), (f"{own.name}_share", False)]
        rules.append(Limit(own.name, f"{own.name}_share", "{value:.4f} of the words > {high}", high=own.max))
    for own in addresses:
        names.append((f"{own.name}_count", True))
        rules.append(Limit(own.name, f"{own.name}_count", "{value} addresses > {high}", high=own.max))
    for own in config.classifiers:
        names.append((f"{own.name}_score", False))
        detail = "{column} {value:.4f} outside [{low}, {high}]"
        rules.append(Limit(own.name, f"{own.name}_score", detail, own.min, own.max))
    contents = {own["name"]: own["path"] for own in (*config.tagging()["lists"], *config.tagging()["classifiers"])}
    files = (
        [UsersFile(own.name, own.path, contents[own.name]) for own in kind]
        for kind in (words, addresses, config.classifiers)
    )
    measure = _with_columns(tuple(names))(*map(tuple, files))
    return DocumentStep("unwanted", measure, tuple(rules), settings="max of data.lists, min or max of data.classifiers")


def _word_columns(texts: pa.Array, lists: Sequence[UsersFile]) -> Iterator[pa.Array]:
    """Of each list the count and the share."""
    hashes, ends = _words(texts)
    sizes = np.maximum(np.diff(ends, prepend=0), 1)
    for file in lists:
        counts = np.zeros(len(texts), np.int64)
        for n, listed in listed_words(file.path, file.content).items():
            counts += _occurrences(hashes, ends, n, listed)
        yield pa.array(counts)
        yield pa.array((counts / sizes).round(6))


def _words(texts: pa.Array) -> tuple[Hashes, NDArray[np.int64]]:
    """The hashes of all texts' words, and where those of each text end."""
    from lifecycle.data.compiled_words import hash_texts

    ends = np.zeros(len(texts), np.int64)
    if not len(texts):
        return np.empty(0, np.uint64), ends
    data, offsets = utf8(texts)
    hashes = np.empty(int(offsets[-1] - offsets[0]) // 2 + len(texts), np.uint64)
    return hashes[: hash_texts(data, offsets, folded_characters(), hashes, ends)], ends


def _occurrences(hashes: Hashes, ends: NDArray[np.int64], n: int, listed: Hashes) -> NDArray[np.int64]:
    """How often each text has one of some runs of `n` words. `ends`: where the texts' words end."""
    grams = ngram_hashes(hashes, n)
    slots = np.minimum(np.searchsorted(listed, grams), len(listed) - 1)
    places = np.flatnonzero(listed[slots] == grams)
    texts = np.searchsorted(ends, places, side="right")
    is_inside = places + n <= ends[texts]  # not in two texts
    return np.bincount(texts[is_inside], minlength=len(ends))


@lru_cache(maxsize=16)
def listed_words(path: str, content: str) -> dict[int, Hashes]:
    """The hashes of a list's entries, by their number of words. Raises `ConfigError` for entries that are none."""
    del content
    found: dict[int, list[int]] = {}
    lines = list_lines(Path(path))
    entries = [
        (number, entry) for number, line in enumerate(lines, 1) if (entry := line.strip()) and not entry.startswith("#")
    ]
    _require_words(path, entries)
    for _, entry in entries:
        words = word_hashes(entry)
        found.setdefault(len(words), []).append(int(ngram_hashes(words, len(words))[0]))
    return {n: np.unique(np.array(hashes, np.uint64)) for n, hashes in found.items()}


def _require_words(path: str, entries: Sequence[tuple[int, str]]) -> None:
    """Raises `ConfigError` for entries without a word, and for those with marks as letters: `sh!t` would be `sh t`."""
    wrong = [
        f"{number} {shown_entry(entry)}"
        for number, entry in entries
        if not len(word_hashes(entry)) or _MARKS.search(entry)
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(
            f"{path}: of these lines other words would be found than they say, or none, since a word is a run of "
            f"letters and digits: {', '.join(wrong[:SHOWN])}{more}; write them in letters or remove them"
        )


def _named(batch: pa.RecordBatch) -> Iterator[list[str]]:
    """The addresses of each document itself and in its metadata."""
    for url, meta in zip(batch["url"].to_pylist(), batch["meta"].to_pylist(), strict=True):
        own = [] if url is None else [url]
        yield own + [address for value in _strings(meta) for address in _ADDRESS.findall(value)]


def _strings(meta: str) -> Iterator[str]:
    return (value for value in json.loads(meta).values() if isinstance(value, str)) if "://" in meta else iter(())


def _num_listed(addresses: Sequence[str], path: str) -> int:
    listed = read_list(path)
    return sum(
        canonical(address) in listed.addresses or any(host in listed.hosts for host in hosts_above(host_of(address)))
        for address in addresses
    )
