"""Documents written as shuffled token shards (`shards.py`), in two passes by processes side by side, killed and gone on
with, in flat memory.

The first pass (`token_parts.py`) writes documents as tokens, in the order of their keys within each part. The second
merges: a shard has the documents of the next ranges of keys, from all parts. So the order is that of the keys, as if
all had been shuffled at once; it follows from the documents alone, and the same documents and tokenizer give the same
bytes, whatever the number of processes.

Memory holds in each process a part in the first pass, a range in the second: the tokens of about `SHARD_BYTES` of text,
or of a 16,384th of a split that has more than 500 GB. What a pass has finished is in the folder `parts` with its facts:
a run that was killed goes on with the rest.
"""

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from array_record.python import array_record_module
from numpy.typing import NDArray

from lifecycle.core.config import digest
from lifecycle.core.file_hashes import file_hashes
from lifecycle.core.files import temporary, write_text
from lifecycle.core.progress import Progress
from lifecycle.data.shards import ARRAYS, COUNTS, INDEX, SPLITS, ShardError, TokenShards
from lifecycle.data.tagging.engine import Engine, Native
from lifecycle.data.tagging.workers import WorkerDiedError
from lifecycle.data.token_parts import (
    DOCUMENT,
    Facts,
    PlannedPart,
    TokenPart,
    WritePart,
    cut,
    keys_of,
    part_name,
    planned_parts,
    remember,
    remembered,
    row_groups,
    save_array,
)
from lifecycle.data.topics import Topics
from lifecycle.text.tokenizer import Tokenizer

SHARD_BYTES = 32 << 20  # of text: a few seconds' work, and what a killed run does again; 16 MB of tokens
MOST_PARTS = 16_384  # of a split
PARTS = "parts"
# One document per record group: a random read decodes no neighbours.
_WRITE_OPTIONS = "group_size:1,uncompressed"


def write_token_shards(
    documents: Mapping[str, Path], tokenizer: Tokenizer, out: Path, progress: Progress, engine: Engine | None = None,
    *, num_shards: int | None = None, shard_bytes: int = SHARD_BYTES, topics: Mapping[str, Topics] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Encodes `kept-*.parquet` and `heldout-*.parquet` into `out`; returns stats. `documents`: the folders of corpora
    by name, whose sources are called `CORPUS/SOURCE`; with the name "" as they are. `engine`: where; without one, here.
    `num_shards`: of the training documents; None: of `shard_bytes` of text each. `topics`: of the documents of some
    corpora, which become parts of their sources (`topic_names.py`).

    Raises `ShardError` if a corpus has no kept document. Without held-out documents that split exists and is empty.
    """
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    counts = {"train": num_shards, "heldout": None}
    plans = [_Plan.of(documents, split, shard_bytes, counts[split]) for split in SPLITS]
    for name, folder in documents.items():
        if not any(part.corpus == name for part in plans[0].parts):
            raise ShardError(f"{folder}: no kept document to train on; loosen the data filters or add sources")
    dtype, engine = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4", engine or Native(1)
    write_part = WritePart(tokenizer, dtype, out / PARTS, {plan.split: plan.num_ranges for plan in plans}, topics or {})
    parts = _all(list(chain(*(plan.parts for plan in plans))), write_part, engine, progress, "tokens", plans)
    write_shard = _WriteShard(
        out, dtype, {plan.split: len(plan.parts) for plan in plans},
        {plan.split: digest([write_part.made_of(part) for part in plan.parts]) for plan in plans},
    )  # fmt: skip
    shards = _all(list(chain(*(plan.shards for plan in plans))), write_shard, engine, progress, "shards", plans)
    sources = sorted({name for facts in parts.values() for name in facts["sources"]})
    splits = {plan.split: _joined(out, plan, parts, shards, sources) for plan in plans}
    _write_index(out, tokenizer, {"dtype": dtype, "sources": sources, "splits": splits})
    shutil.rmtree(out / PARTS)
    counted = ("documents", "tokens", "text_bytes", "unknown_tokens")
    return {
        "dtype": np.dtype(dtype).name,
        "splits": {split: {key: of[key] for key in counted} for split, of in splits.items()},
        "source_tokens": {split: TokenShards(out, split).source_tokens() for split in SPLITS},
    }


def text_in_memory(text_bytes: int, shard_bytes: int = SHARD_BYTES) -> int:
    """Of a split of so much text, that whose tokens are in the memory of a process at a time."""
    return max(shard_bytes, text_bytes // MOST_PARTS)


def _write_index(out: Path, tokenizer: Tokenizer, content: dict[str, Any]) -> None:
    made_by: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
    write_text(out / INDEX, json.dumps(made_by | content, indent=1) + "\n")


@dataclass(frozen=True)
class _Shard:
    """A shard, and the ranges of keys that it has."""

    split: str
    number: int
    ranges: range

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True)
class _Plan:
    """Of a split."""

    split: str
    parts: tuple[PlannedPart, ...]
    num_shards: int
    ranges_per_shard: int

    @classmethod
    def of(cls, documents: Mapping[str, Path], split: str, shard_bytes: int, num_shards: int | None) -> "_Plan":
        """Parts and ranges of about as many bytes of text; so many shards, or of a range each."""
        groups = list(row_groups(documents, split))
        size = sum(group.num_bytes for group in groups)
        held = text_in_memory(size, shard_bytes)
        parts, pieces = tuple(planned_parts(split, groups, held)), max(1, -(-size // held))
        num_documents = sum(part.num_documents for part in parts)
        shards = num_shards or min(pieces, num_documents)
        return cls(split, parts, shards if parts else 0, -(-pieces // max(1, shards)))

    @property
    def num_documents(self) -> int:
        return sum(part.num_documents for part in self.parts)

    @property
    def num_ranges(self) -> int:
        return self.num_shards * self.ranges_per_shard

    @property
    def shards(self) -> tuple[_Shard, ...]:
        per = self.ranges_per_shard
        return tuple(_Shard(self.split, i, range(i * per, (i + 1) * per)) for i in range(self.num_shards))


class _Piece(Protocol):
    """Of the work of a pass."""

    @property
    def name(self) -> str: ...


class _Writing[T](Protocol):
    """Writes pieces of a pass; `found` has the facts of those that are there."""

    def __call__(self, piece: T, /) -> Facts: ...

    def found(self, piece: T, /) -> Facts | None: ...


def _all[T: _Piece](
    pieces: Sequence[T], write: _Writing[T], engine: Engine, progress: Progress, name: str, plans: Sequence[_Plan]
) -> dict[T, Facts]:
    """Writes the pieces that are not there yet; returns the facts of all."""
    facts = {piece: found for piece in pieces if (found := write.found(piece)) is not None}
    waiting = [piece for piece in pieces if piece not in facts]
    progress.start(name, sum(plan.num_documents for plan in plans))
    done, tokens = (sum(of[key] for of in facts.values()) for key in ("documents", "tokens"))
    for number, result in engine.results(write, waiting, attempts=2):
        if isinstance(result, WorkerDiedError):
            raise result.of(f"{name}, {waiting[number].name}")
        facts[waiting[number]] = result
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
    """Writes shards, each with a table of its documents. Of each split: the number of its parts, and a hash of them."""

    out: Path
    dtype: str
    num_parts: Mapping[str, int]
    made_of: Mapping[str, str]

    def __call__(self, shard: _Shard) -> Facts:
        """Writes a shard; returns its facts."""
        path, parts, sources = self._files_of(shard)[0], self._parts(shard.split), dict[str, int]()
        written = [np.empty(0, DOCUMENT)]
        with _system_errors(path):
            writer = array_record_module.ArrayRecordWriter(str(temporary(path)), _WRITE_OPTIONS)
        for number in shard.ranges:
            documents, records = _merged(parts, number, self.dtype, sources)
            with _system_errors(path):
                for record in records:
                    writer.write(bytes(record))
            written.append(documents)
        with _system_errors(path):
            writer.close()
        temporary(path).replace(path)
        documents = np.concatenate(written)
        save_array(_documents_of(self.out, shard.name), documents.dtype, documents.shape, [documents])
        facts = {
            "file": path.name,
            "documents": len(documents),
            "tokens": int(documents["length"].sum(dtype=np.int64)),
            "bytes": path.stat().st_size,
            "sha256": file_hashes(self.out, [path.name])[path.name],
            "sources": list(sources),
        }
        remember(self.out / PARTS / shard.name, self._made_of(shard), facts, self._files_of(shard))
        return facts

    def found(self, shard: _Shard) -> Facts | None:
        """The facts of a shard that a killed run has written of the same parts."""
        return remembered(self.out / PARTS / shard.name, self._made_of(shard), self._files_of(shard))

    def _files_of(self, shard: _Shard) -> tuple[Path, Path]:
        return self.out / f"{shard.name}.array_record", _documents_of(self.out, shard.name)

    def _parts(self, split: str) -> list[TokenPart]:
        names = (part_name(split, number) for number in range(self.num_parts[split]))
        return [TokenPart(self.out / PARTS / name) for name in names]

    def _made_of(self, shard: _Shard) -> str:
        return digest([self.made_of[shard.split], shard.ranges.start, shard.ranges.stop])


def _merged(
    parts: Sequence[TokenPart], number: int, dtype: str, sources: dict[str, int]
) -> tuple[NDArray[Any], Iterator[memoryview]]:
    """(documents, the bytes of each one's tokens) of a range of keys, in the keys' order. Numbers new sources."""
    found, records = [np.empty(0, DOCUMENT)], list[memoryview]()
    for part in parts:
        documents, tokens = part.read(number, dtype)
        if len(documents):
            numbers = np.array([sources.setdefault(name, len(sources)) for name in part.sources], "<i4")
            documents["source"] = numbers[documents["source"]]
            found.append(documents)
            records += cut(tokens, documents["length"])
    documents = np.concatenate(found)
    order = np.argsort(keys_of(documents["id"]), kind="stable")
    return documents[order], (records[place] for place in order.tolist())


def _documents_of(out: Path, shard: str) -> Path:
    return out / PARTS / f"{shard}.documents.npy"


def _joined(
    out: Path, plan: _Plan, parts: Mapping[PlannedPart, Facts], shards: Mapping[_Shard, Facts], sources: Sequence[str]
) -> Facts:
    """Joins a split's arrays; returns its entry in the index."""
    facts = [shards[shard] for shard in plan.shards]
    number_of = {name: number for number, name in enumerate(sources)}

    def column(name: str) -> Iterator[NDArray[Any]]:
        """Of the documents of each shard; sources by their numbers in the index."""
        for shard in plan.shards:
            values = np.load(_documents_of(out, shard.name), mmap_mode="r")[name]
            numbers = np.array([number_of[name] for name in shards[shard]["sources"]], "<i4")
            yield numbers[values] if name == "source" else values

    arrays = {
        "lengths": column("length"), "sources": column("source"), "ids": column("id"),
        COUNTS: (TokenPart(out / PARTS / part.name).counts() for part in plan.parts),
    }  # fmt: skip
    for what, (dtype, dims) in ARRAYS.items():
        save_array(out / f"{plan.split}.{what}.npy", np.dtype(dtype), (plan.num_documents, *dims), arrays[what])
    shown = ("file", "documents", "tokens", "bytes", "sha256")
    return {
        "documents": plan.num_documents,
        "tokens": sum(of["tokens"] for of in facts),
        **{key: sum(parts[part][key] for part in plan.parts) for key in ("text_bytes", "unknown_tokens")},
        "shards": [{key: of[key] for key in shown} for of in facts],
        "arrays": file_hashes(out, [f"{plan.split}.{what}.npy" for what in ARRAYS]),
    }
