"""Documents written as token shards (`shards.py`): by processes side by side, killed and gone on with, in flat memory.

A shard has documents that follow each other: row groups of the documents' files, until they have `SHARD_BYTES` of
text; of a large corpus more, so that a split has few more than `MOST_SHARDS`. So which documents a shard has depends on
them alone, and the same documents and tokenizer give the same bytes, whatever the number of processes.

Memory holds a row group of each process. A shard's part of the arrays is left in the folder `parts`, its facts there
last of all: a run that was killed goes on with the shards that have none.
"""

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from array_record.python import array_record_module
from numpy.typing import NDArray

from lifecycle.core.config import digest
from lifecycle.core.file_hashes import file_hashes
from lifecycle.core.files import temporary, write_text
from lifecycle.core.progress import Progress
from lifecycle.data.measures.identity import HASH_BYTES
from lifecycle.data.shards import ARRAYS, INDEX, SPLITS, ShardError, TokenShards
from lifecycle.data.tagging.engine import Engine, Native
from lifecycle.data.tagging.workers import WorkerDiedError
from lifecycle.data.topics import Topics
from lifecycle.text.bulk import BulkEncoder, bulk_encoder
from lifecycle.text.tokenizer import Tokenizer

SHARD_BYTES = 32 << 20  # a few seconds' work, and what a killed run does again; 16 MB of tokens
MOST_SHARDS = 4096
PARTS = "parts"
# One document per record group: a random read decodes no neighbours.
_WRITE_OPTIONS = "group_size:1,uncompressed"
_COLUMNS = ("id", "source", "text")

type _Facts = dict[str, Any]
type _Group = tuple[Path, int]  # a row group of a file


def write_token_shards(
    documents: Mapping[str, Path], tokenizer: Tokenizer, out: Path, progress: Progress, engine: Engine | None = None,
    shard_bytes: int = SHARD_BYTES, topics: Mapping[str, Topics] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Encodes `kept-*.parquet` and `heldout-*.parquet` into `out`; returns stats. `documents`: the folders of corpora
    by name, whose sources are called `CORPUS/SOURCE`; with the name "" as they are. `engine`: where; without one, here.
    `topics`: of the documents of some corpora, which become parts of their sources (`topic_names.py`).

    Raises `ShardError` if a corpus has no kept document. Without held-out documents that split exists and is empty.
    """
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    shards = {split: list(_planned(documents, split, shard_bytes)) for split in SPLITS}
    for name, folder in documents.items():
        if not any(shard.corpus == name for shard in shards["train"]):
            raise ShardError(f"{folder}: no kept document to train on; loosen the data filters or add sources")
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    write = _WriteShard(tokenizer, dtype.str, out, topics or {})
    facts = _write_all([*shards["train"], *shards["heldout"]], write, engine or Native(1), progress)
    sources: dict[str, int] = {}  # name -> number, in order of first occurrence
    splits = {
        split: _joined(out, split, [facts[shard.name] for shard in own], sources) for split, own in shards.items()
    }
    index = {
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "sources": list(sources),
        "splits": splits,
    }
    write_text(out / INDEX, json.dumps(index, indent=1) + "\n")
    shutil.rmtree(out / PARTS)
    counted = ("documents", "tokens", "text_bytes")
    return {
        "dtype": dtype.name,
        "splits": {split: {key: of[key] for key in counted} for split, of in splits.items()},
        "source_tokens": {split: TokenShards(out, split).source_tokens() for split in SPLITS},
    }


@dataclass(frozen=True)
class _Shard:
    """What a shard is made of."""

    split: str
    number: int
    corpus: str
    groups: tuple[_Group, ...]
    num_documents: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def _planned(documents: Mapping[str, Path], split: str, shard_bytes: int) -> Iterator[_Shard]:
    """The shards of a split, each of one corpus."""
    groups = [
        (corpus, *group)
        for corpus, folder in documents.items()
        for path in sorted(folder.glob(f"{SPLITS[split]}-*.parquet"))
        for group in _row_groups(path)
    ]
    most = max(shard_bytes, sum(size for *_, size in groups) // MOST_SHARDS)
    shard, held = _Shard(split, 0, next(iter(documents)), (), 0), 0
    for corpus, group, num_documents, size in groups:
        if shard.groups and (held + size > most or corpus != shard.corpus):
            yield shard
            shard, held = _Shard(split, shard.number + 1, corpus, (), 0), 0
        shard = replace(
            shard, corpus=corpus, groups=(*shard.groups, group), num_documents=shard.num_documents + num_documents
        )
        held += size
    if shard.groups:
        yield shard


def _row_groups(path: Path) -> Iterator[tuple[_Group, int, int]]:
    """Each row group with documents, their number and about their bytes of text."""
    metadata = pq.read_metadata(path)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(at) for at in range(group.num_columns))
        size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
        if group.num_rows:
            yield (path, number), group.num_rows, size


def _write_all(
    shards: Sequence[_Shard], write: "_WriteShard", engine: Engine, progress: Progress
) -> Mapping[str, _Facts]:
    """Writes the shards that are not there yet; returns the facts of all by their names."""
    facts = {shard.name: found for shard in shards if (found := write.found(shard)) is not None}
    waiting = [shard for shard in shards if shard.name not in facts]
    progress.start("shards", sum(shard.num_documents for shard in shards))
    done, tokens = (sum(of[key] for of in facts.values()) for key in ("documents", "tokens"))
    for number, result in engine.results(write, waiting, attempts=2):
        if isinstance(result, WorkerDiedError):
            raise result
        facts[waiting[number].name] = result
        done, tokens = done + result["documents"], tokens + result["tokens"]
        progress.update(done, tokens=tokens)
    return facts


@contextmanager
def _system_errors(path: Path) -> Generator[None]:
    """The faults of ArrayRecord's writer, which are texts, as other files have them: on a full disk a run says what to
    do, and goes on from there."""
    try:
        yield
    except RuntimeError as error:
        found = (code for code in errno.errorcode if os.strerror(code) in str(error))
        raise OSError(next(found, errno.EIO), f"{path}: {error}") from None


@dataclass(frozen=True)
class _WriteShard:
    """Writes shards, each with its part of the arrays."""

    tokenizer: Tokenizer
    dtype: str
    out: Path
    topics: Mapping[str, Topics]

    def __call__(self, shard: _Shard) -> _Facts:
        """Writes a shard; returns its facts."""
        path, encode = self.out / f"{shard.name}.array_record", _encoder(self.tokenizer)
        topics = self.topics.get(shard.corpus)
        part, text_bytes = _Part([], [], []), 0
        with _system_errors(path):
            writer = array_record_module.ArrayRecordWriter(str(temporary(path)), _WRITE_OPTIONS)
        for batch in map(_read, shard.groups):
            ids, ends = encode(batch["text"])
            data, size = memoryview(ids.astype(self.dtype).tobytes()), np.dtype(self.dtype).itemsize
            bounds = [0, *(ends * size).tolist()]
            with _system_errors(path):
                for start, end in pairwise(bounds):
                    writer.write(bytes(data[start:end]))
            text_bytes += _num_bytes(batch["text"])
            sources = batch["source"] if topics is None else topics.sources(batch)
            part.add(np.diff(ends, prepend=0), batch["id"], sources)
        with _system_errors(path):
            writer.close()
        temporary(path).replace(path)
        names = [
            f"{shard.corpus}/{name}" if shard.corpus else name for name in part.save(self.out / PARTS / shard.name)
        ]
        facts = {
            "file": path.name,
            "documents": shard.num_documents,
            "tokens": int(sum(int(lengths.sum()) for lengths in part.lengths)),
            "bytes": path.stat().st_size,
            "sha256": file_hashes(self.out, [path.name])[path.name],
        }
        return self._remembered(shard, {**facts, "text_bytes": text_bytes, "sources": names})

    def _remembered(self, shard: _Shard, facts: _Facts) -> _Facts:
        write_text(self._facts_of(shard), json.dumps({"made_of": self._made_of(shard), "facts": facts}))
        return facts

    def found(self, shard: _Shard) -> _Facts | None:
        """The facts of a shard that a killed run has written of the same documents."""
        path = self._facts_of(shard)
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content["facts"] if content.get("made_of") == self._made_of(shard) else None

    def _facts_of(self, shard: _Shard) -> Path:
        return self.out / PARTS / f"{shard.name}.json"

    def _made_of(self, shard: _Shard) -> str:
        groups = [[path.name, path.stat().st_size, number] for path, number in shard.groups]
        topics = self.topics.get(shard.corpus)
        return digest([shard.corpus, groups, self.tokenizer.fingerprint, self.dtype, topics and topics.content])


_encoders: dict[tuple[str, int], BulkEncoder] = {}  # of this process: one, which it makes once


def _encoder(tokenizer: Tokenizer) -> BulkEncoder:
    key = tokenizer.fingerprint, tokenizer.vocab_size
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = bulk_encoder(tokenizer)
    return _encoders[key]


def _read(group: _Group) -> pa.RecordBatch:
    path, number = group
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(number, columns=list(_COLUMNS))
    return pa.record_batch({name: pa.concat_arrays(table[name].chunks) for name in _COLUMNS})


def _num_bytes(texts: pa.StringArray) -> int:
    """Of UTF-8."""
    return int(pc.call_function("binary_length", [texts]).to_numpy().sum(dtype=np.int64))


@dataclass(frozen=True)
class _Part:
    """A shard's part of the arrays, of each row group: lengths, the names of sources, ids."""

    lengths: list[NDArray[np.int32]]
    sources: list[pa.StringArray]
    ids: list[NDArray[np.uint8]]

    def add(self, lengths: NDArray[np.int64], ids: pa.StringArray, sources: pa.StringArray) -> None:
        """Takes a row group in."""
        names = np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), np.uint8)
        self.lengths.append(lengths.astype("<i4"))
        self.sources.append(sources)
        self.ids.append(names.reshape(len(lengths), HASH_BYTES))

    def save(self, path: Path) -> list[str]:
        """Writes a file for each array; sources as the numbers of the names that are returned, in order of first
        occurrence."""
        sources = pa.concat_arrays(self.sources).dictionary_encode()
        numbers = sources.indices.to_numpy().astype("<i4")
        for what, array in {
            "lengths": np.concatenate(self.lengths),
            "sources": numbers,
            "ids": np.concatenate(self.ids),
        }.items():
            np.save(_array_of(path, what), array)
        return sources.dictionary.to_pylist()


def _array_of(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}.npy")


def _joined(out: Path, split: str, facts: Sequence[_Facts], sources: dict[str, int]) -> dict[str, Any]:
    """Joins a split's arrays from their parts; returns its entry in the index. Numbers new sources."""
    numbers = [np.array([sources.setdefault(name, len(sources)) for name in of["sources"]], "<i4") for of in facts]
    num_documents = sum(of["documents"] for of in facts)
    for what, (dtype, dims) in ARRAYS.items():
        path = out / f"{split}.{what}.npy"
        parts = (np.load(_array_of(out / PARTS / Path(of["file"]).stem, what)) for of in facts)
        if what == "sources":
            parts = (own[part] for own, part in zip(numbers, parts, strict=True))
        _save(path, np.dtype(dtype), (num_documents, *dims), parts)
    names = [f"{split}.{what}.npy" for what in ARRAYS]
    shown = ("file", "documents", "tokens", "bytes", "sha256")
    return {
        "documents": num_documents,
        "tokens": sum(of["tokens"] for of in facts),
        "text_bytes": sum(of["text_bytes"] for of in facts),
        "shards": [{key: of[key] for key in shown} for of in facts],
        "arrays": file_hashes(out, names),
    }


def _save(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
    """An array as `np.save` writes it, from its parts, of which one is in memory at a time."""
    with open(temporary(path), "wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(part.astype(dtype, copy=False).tobytes() for part in parts)
    temporary(path).replace(path)
