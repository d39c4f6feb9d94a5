"""Documents as tokens, in parts: the first of two passes over them, which shuffles (`shard_writing.py`, the second).

A document's place in the shuffled order follows from its id alone: documents stand in the order of a hash of it, their
`key`. All keys are cut into ranges of equal width. A part has documents that follow each other, row groups of their
files, in the order of their keys: what it has of a range lies together, and the second pass reads it at once.

A part is a file: where each range's documents and tokens begin in it, all documents, all tokens. Beside it are the
numbers of tokens in the documents' order, and last of all the part's facts: a run that was killed goes on with the
parts that have none.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.config import digest
from lifecycle.core.files import temporary, write_text
from lifecycle.data.measures.identity import HASH_BYTES
from lifecycle.data.shards import SPLITS
from lifecycle.data.topics import Topics
from lifecycle.text.bulk import BulkEncoder, bulk_encoder
from lifecycle.text.tokenizer import Tokenizer

# Of a document: its id, its source's number among those of the part, and its number of tokens.
DOCUMENT = np.dtype([("id", "u1", (HASH_BYTES,)), ("source", "<i4"), ("length", "<i4")])
_PLACE = np.dtype("<i8")  # of a byte in a file
_COLUMNS = ("id", "source", "text")

type Facts = dict[str, Any]
type Group = tuple[Path, int, int]  # a file, its bytes, and the number of a row group in it


class RowGroup(NamedTuple):
    """Of the documents of a corpus: where it is, how many it has, and about their bytes of text."""

    corpus: str
    group: Group
    num_documents: int
    num_bytes: int


def keys_of(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[documents, 16] -> [documents]: the keys by which documents are shuffled: hashes of the ids' two halves. (Ids are
    hashes, but other steps draw by them too, and a user's own may be numbers.)"""
    first, second = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2).T
    return _mixed(_mixed(first.astype(np.uint64)) ^ second)


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014, figure 17, in the variant of Vigna's splitmix64.c)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))


def _ranges_of(keys: NDArray[np.uint64], num_ranges: int) -> NDArray[np.uint64]:
    """The number of each key's range."""
    return ((keys >> np.uint64(32)) * np.uint64(num_ranges)) >> np.uint64(32)


@dataclass(frozen=True)
class PlannedPart:
    """What a part is made of."""

    split: str
    number: int
    corpus: str
    groups: tuple[Group, ...] = ()
    num_documents: int = 0
    num_bytes: int = 0  # of text, about

    @property
    def name(self) -> str:
        """The beginning of its files' names."""
        return part_name(self.split, self.number)

    def with_group(self, group: Group, num_documents: int, num_bytes: int) -> "PlannedPart":
        """The part with another row group."""
        return replace(
            self, groups=(*self.groups, group), num_documents=self.num_documents + num_documents,
            num_bytes=self.num_bytes + num_bytes,
        )  # fmt: skip


def part_name(split: str, number: int) -> str:
    """The beginning of the names of a part's files."""
    return f"{split}-part-{number:05d}"


def planned_parts(split: str, groups: Iterable[RowGroup], part_bytes: int) -> Iterator[PlannedPart]:
    """The parts of a split, each of one corpus, with so many bytes of text, or one row group if that has more."""
    part = PlannedPart(split, 0, "")
    for corpus, group, num_documents, size in groups:
        if part.groups and (part.num_bytes + size > part_bytes or corpus != part.corpus):
            yield part
            part = PlannedPart(split, part.number + 1, corpus)
        part = replace(part, corpus=corpus).with_group(group, num_documents, size)
    if part.groups:
        yield part


def row_groups(documents: Mapping[str, Path], split: str) -> Iterator[RowGroup]:
    """The row groups of a split that have documents."""
    for corpus, folder in documents.items():
        for path in sorted(folder.glob(f"{SPLITS[split]}-*.parquet")):
            metadata, file_bytes = pq.read_metadata(path), path.stat().st_size
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                columns = (group.column(at) for at in range(group.num_columns))
                size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
                if group.num_rows:
                    yield RowGroup(corpus, (path, file_bytes, number), group.num_rows, size)


@dataclass(frozen=True)
class WritePart:
    """Writes parts into a folder. `num_ranges`: of the keys of each split; `topics`: of the documents of some corpora,
    which become parts of their sources (`topic_names.py`)."""

    tokenizer: Tokenizer
    dtype: str
    folder: Path
    num_ranges: Mapping[str, int]
    topics: Mapping[str, Topics]

    def __call__(self, part: PlannedPart) -> Facts:
        """Writes a part; returns its facts. In memory are its tokens, and the text of a row group."""
        encode, topics, held = _encoder(self.tokenizer), self.topics.get(part.corpus), _Held()
        num_unknown = 0
        for batch in map(_read, part.groups):
            ids, ends = encode(batch["text"])
            held.add(ids.astype(self.dtype), ends, batch, batch["source"] if topics is None else topics.sources(batch))
            num_unknown += self._unknown_in(ids, len(ends))
        names = held.save(self.folder / part.name, self.num_ranges[part.split])
        facts = {
            "documents": part.num_documents,
            "tokens": sum(len(ids) for ids in held.tokens),
            "text_bytes": held.text_bytes,
            "unknown_tokens": num_unknown,
            "sources": [f"{part.corpus}/{name}" if part.corpus else name for name in names],
        }
        remember(self.folder / part.name, self.made_of(part), facts, self._files_of(part))
        return facts

    def _unknown_in(self, ids: NDArray[np.int32], num_documents: int) -> int:
        """How many ids stand for characters that the vocabulary cannot write; the same id may frame documents."""
        tokenizer = self.tokenizer
        if tokenizer.unknown_id is None:
            return 0
        frames = (tokenizer.bos_id, tokenizer.eos_id).count(tokenizer.unknown_id)
        return int(np.count_nonzero(ids == tokenizer.unknown_id)) - frames * num_documents

    def made_of(self, part: PlannedPart) -> str:
        """A hash of what decides the part's content."""
        groups = [[path.name, file_bytes, number] for path, file_bytes, number in part.groups]
        topics, num_ranges = self.topics.get(part.corpus), self.num_ranges[part.split]
        topic = topics and topics.content
        return digest([part.corpus, groups, self.tokenizer.fingerprint, self.dtype, num_ranges, topic])

    def found(self, part: PlannedPart) -> Facts | None:
        """The facts of a part that a killed run has written of the same documents."""
        return remembered(self.folder / part.name, self.made_of(part), self._files_of(part))

    def _files_of(self, part: PlannedPart) -> tuple[Path, Path]:
        path = self.folder / part.name
        return _records_of(path), _counts_of(path)


@dataclass
class _Held:
    """What is in memory of a part, of each row group: tokens, where documents end in them, ids, names of sources."""

    tokens: list[NDArray[Any]] = field(default_factory=list)
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    ids: list[NDArray[np.uint8]] = field(default_factory=list)
    sources: list[pa.StringArray] = field(default_factory=list)
    text_bytes: int = 0  # of UTF-8

    def add(
        self, tokens: NDArray[Any], ends: NDArray[np.int64], batch: pa.RecordBatch, sources: pa.StringArray
    ) -> None:
        """Takes a row group in."""
        ids = np.frombuffer(bytes.fromhex("".join(batch["id"].to_pylist())), np.uint8)
        self.tokens.append(tokens)
        self.lengths.append(np.diff(ends, prepend=0))
        self.ids.append(ids.reshape(len(ends), HASH_BYTES))
        self.sources.append(sources)
        self.text_bytes += int(pc.call_function("binary_length", [batch["text"]]).to_numpy().sum(dtype=np.int64))

    def save(self, path: Path, num_ranges: int) -> list[str]:
        """Writes the part's files; returns the names of its sources by their numbers."""
        sources = pa.concat_arrays(self.sources).dictionary_encode()
        documents = np.empty(len(sources), DOCUMENT)
        documents["id"], documents["length"] = np.concatenate(self.ids), np.concatenate(self.lengths)
        documents["source"] = sources.indices.to_numpy()
        save_array(_counts_of(path), documents.dtype["length"], (len(documents),), [documents["length"]])
        keys = keys_of(documents["id"])
        order = np.argsort(keys, kind="stable")
        firsts = np.searchsorted(_ranges_of(keys[order], num_ranges), np.arange(num_ranges + 1, dtype=np.uint64))
        each = [own for ids, of in zip(self.tokens, self.lengths, strict=True) for own in cut(ids, of)]
        records = [each[number] for number in order.tolist()]
        ends = np.cumsum([0, *map(len, records)], dtype=np.int64)
        begins = np.stack([firsts * DOCUMENT.itemsize, len(documents) * DOCUMENT.itemsize + ends[firsts]], 1)
        begins += begins.nbytes
        with open(_records_of(path), "wb") as file:
            file.writelines([begins.astype(_PLACE).tobytes(), documents[order].tobytes(), *records])
        return sources.dictionary.to_pylist()


def cut(tokens: NDArray[Any], lengths: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of each document's tokens."""
    data, ends = memoryview(tokens.view(np.uint8)), np.cumsum(lengths, dtype=np.int64) * tokens.itemsize
    for begin, end in pairwise([0, *ends.tolist()]):
        yield data[begin:end]


@dataclass(frozen=True)
class TokenPart:
    """A part that is written."""

    path: Path

    @cached_property
    def sources(self) -> Sequence[str]:
        """The names of its sources by their numbers."""
        return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))["facts"]["sources"]

    def counts(self) -> NDArray[np.int32]:
        """The tokens of each document, in the documents' order."""
        return np.load(_counts_of(self.path))

    def read(self, number: int, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """(documents, their tokens) of a range of keys, in the keys' order."""
        with open(_records_of(self.path), "rb") as file:
            file.seek(2 * _PLACE.itemsize * number)
            begins = np.fromfile(file, _PLACE, 4).reshape(2, 2)
            found = []
            for (begin, end), of in zip(begins.T.tolist(), (DOCUMENT, np.dtype(dtype)), strict=True):
                file.seek(begin)
                found.append(np.fromfile(file, of, (end - begin) // of.itemsize))
        documents, tokens = found
        return documents, tokens


def save_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
    """An array as `np.save` writes it, from its parts, of which one is in memory at a time. (On a full disk `np.save`
    raises an `OSError` that does not say so.)"""
    with open(temporary(path), "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(part.astype(dtype, copy=False).tobytes() for part in parts)
    temporary(path).replace(path)


def remember(path: Path, made_of: str, facts: Facts, files: Sequence[Path]) -> None:
    """Writes the facts of what is finished, what it was made of, and how large its files are."""
    sizes = [file.stat().st_size for file in files]
    write_text(path.with_suffix(".json"), json.dumps({"made_of": made_of, "sizes": sizes, "facts": facts}))


def remembered(path: Path, made_of: str, files: Sequence[Path]) -> Facts | None:
    """The facts of what was made of the same, if its files are whole: a run may be killed while it deletes them, a
    machine lose power while it writes them."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        sizes = [file.stat().st_size for file in files]
    except (FileNotFoundError, ValueError):
        return None
    return content["facts"] if (content.get("made_of"), content.get("sizes")) == (made_of, sizes) else None


_encoders: dict[tuple[str, int], BulkEncoder] = {}  # of this process: one, which it makes once


def _encoder(tokenizer: Tokenizer) -> BulkEncoder:
    key = tokenizer.fingerprint, tokenizer.vocab_size
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = bulk_encoder(tokenizer)
    return _encoders[key]


def _read(group: Group) -> pa.RecordBatch:
    path, _, number = group
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(number, columns=list(_COLUMNS))
    return pa.record_batch({name: pa.concat_arrays(table[name].chunks) for name in _COLUMNS})


def _records_of(part: Path) -> Path:
    return part.with_suffix(".records")


def _counts_of(part: Path) -> Path:
    return part.with_suffix(".counts.npy")
