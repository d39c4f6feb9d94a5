"""Documents as token shards: written once, with random access by document.

One ArrayRecord record is one document: its token ids as little-endian uint16 (uint32 if the vocabulary is larger
than 65,536), with one BOS at the beginning and one EOS at the end. `index.json` lists the files. In the shards' order,
`<split>.lengths.npy` has each document's number of tokens and `<split>.sources.npy` its source, so packing and mixing
are planned without reading a token.

What must hold: the same documents and tokenizer give the same bytes, and a reader rejects shards that are truncated or
were made by another tokenizer.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import batched, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stub

from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.text.tokenizer import Tokenizer

INDEX = "index.json"
SPLITS = {"train": "kept", "heldout": "heldout"}  # split -> the documents' file prefix
BATCH = 256  # documents read and encoded together: enough for the tokenizer's threads, a few MB of text
# One document per record group: a random read decodes no neighbours.
WRITE_OPTIONS = "group_size:1,uncompressed"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ShardError(ValueError):
    """Token shards are missing, damaged or made by another tokenizer."""


def write_token_shards(
    documents: Path, tokenizer: Tokenizer, out: Path, progress: Progress, docs_per_shard: int = 4096
) -> dict[str, Any]:
    """Encodes `kept-*.parquet` and `heldout-*.parquet` into `out`; returns stats.

    Raises `ShardError` if there is no kept document. Without held-out documents that split exists and is empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {split: sorted(documents.glob(f"{prefix}-*.parquet")) for split, prefix in SPLITS.items()}
    total = sum(pq.read_metadata(path).num_rows for paths in files.values() for path in paths)
    progress.start("shards", total)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    splits: dict[str, Any] = {}
    sources: dict[str, int] = {}  # name -> number, in order of first occurrence
    for split, paths in files.items():
        done = sum(counts["documents"] for counts in splits.values())
        splits[split] = _write_split(split, paths, tokenizer, dtype, out, progress, docs_per_shard, done)
        numbers = [sources.setdefault(name, len(sources)) for name in _column(paths, "source")]
        np.save(out / f"{split}.sources.npy", np.array(numbers, dtype="<i4"))
    if not splits["train"]["documents"]:
        raise ShardError(f"{documents}: no kept document to train on; loosen the data filters or add sources")
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
    counts = {split: {key: value for key, value in s.items() if key != "shards"} for split, s in splits.items()}
    return {"dtype": dtype.name, "splits": counts}


def _write_split(
    split: str, paths: list[Path], tokenizer: Tokenizer, dtype: np.dtype[Any], out: Path, progress: Progress,
    docs_per_shard: int, done: int,
) -> dict[str, Any]:  # fmt: skip
    lengths: list[int] = []
    shards: list[dict[str, Any]] = []
    text_bytes = 0
    texts = _column(paths, "text")
    while (first := next(texts, None)) is not None:
        path = out / f"{split}-{len(shards):05d}.array_record"
        sizes, read = _write_shard(path, chain([first], islice(texts, docs_per_shard - 1)), tokenizer, dtype)
        lengths += sizes
        text_bytes += read
        shards.append({"file": path.name, "documents": len(sizes), "bytes": path.stat().st_size})
        progress.update(done + len(lengths), tokens=sum(lengths))
    np.save(out / f"{split}.lengths.npy", np.array(lengths, dtype="<i4"))
    return {"documents": len(lengths), "tokens": sum(lengths), "text_bytes": text_bytes, "shards": shards}


def _column(paths: list[Path], name: str) -> Iterator[str]:
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH, columns=[name]):
            yield from batch.column(name).to_pylist()


def _write_shard(path: Path, texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> tuple[list[int], int]:
    """Writes one shard; returns each document's number of tokens and the UTF-8 bytes of all text."""
    lengths: list[int] = []
    text_bytes = 0
    writer = array_record_module.ArrayRecordWriter(str(path), WRITE_OPTIONS)
    for batch in batched(texts, BATCH):
        for ids in tokenizer.encode_batch(batch):
            framed = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype=dtype)
            writer.write(framed.tobytes())
            lengths.append(len(framed))
        text_bytes += sum(len(text.encode()) for text in batch)
    writer.close()
    return lengths, text_bytes


class TokenShards:
    """Random access to one split: `shards[i]` is document `i` as a one-dimensional array of token ids.

    `lengths[i]` is its number of tokens, known without reading it. If a tokenizer is passed, its fingerprint is
    checked. `documents`: the folder that they were made from, for their names. Threads may share a reader; a pickled
    copy reopens the files in its own process.
    """

    def __init__(
        self, folder: Path, split: str = "train", tokenizer: Tokenizer | None = None, documents: Path | None = None
    ) -> None:
        self.folder, self.split, self._documents = Path(folder), split, documents
        self.index = read_index(self.folder)
        if tokenizer is not None:
            require_tokenizer(self.folder, self.index, tokenizer)
        if split not in self.index["splits"]:
            raise ShardError(f"{folder}: no split {split!r}; there are {', '.join(self.index['splits'])}")
        self.dtype = np.dtype(self.index["dtype"])
        self._entry = self.index["splits"][split]
        self.lengths: np.ndarray = self._per_document("lengths")
        if int(self.lengths.sum()) != self.num_tokens:
            raise ShardError(f"{folder}: {split}.lengths.npy and {INDEX} differ in tokens; run the tokens stage again")
        self._starts = np.cumsum([0, *(shard["documents"] for shard in self._entry["shards"])])
        self._readers = [self._open(shard) for shard in self._entry["shards"]]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenShards, (self.folder, self.split, None, self._documents)

    def __len__(self) -> int:
        return self._entry["documents"]

    def __getitem__(self, document: int) -> np.ndarray:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        record = self._readers[shard].read([int(document - self._starts[shard])])[0]
        return np.frombuffer(record, dtype=self.dtype)

    def name(self, document: int) -> str:
        """The document's id, if the folder of documents is known, else its place in the shards."""
        paths = [] if self._documents is None else sorted(self._documents.glob(f"{SPLITS[self.split]}-*.parquet"))
        row = document
        for path in paths:
            if row < (rows := pq.read_metadata(path).num_rows):
                return pq.read_table(path, columns=["id"])["id"][row].as_py()
            row -= rows
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return f"{self._entry['shards'][shard]['file']}:{document - self._starts[shard]}"

    @property
    def num_tokens(self) -> int:
        """Tokens in the split, BOS and EOS included."""
        return self._entry["tokens"]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents' text: the denominator of bits per byte."""
        return self._entry["text_bytes"]

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that have documents in this split."""
        return tuple(self.index["sources"][number] for number in np.unique(self._per_document("sources")))

    def of_source(self, name: str) -> "SourceDocuments":
        """The documents of one source. Raises `ShardError`, with the known names, if it has none in this split."""
        names, numbers = self.index["sources"], self._per_document("sources")
        own = np.flatnonzero(numbers == names.index(name)) if name in names else np.array([], np.int64)
        if not len(own):
            there = ", ".join(self.sources)
            raise ShardError(f"{self.folder}: no document of source {name!r} in {self.split}; there are {there}")
        return SourceDocuments(self, name, own)

    def domains(self) -> dict[str, np.ndarray]:
        """The documents of each source that has some, in order, by the source's name."""
        numbers = self._per_document("sources")
        return {self.index["sources"][number]: np.flatnonzero(numbers == number) for number in np.unique(numbers)}

    def _per_document(self, what: str) -> np.ndarray:
        path = self.folder / f"{self.split}.{what}.npy"
        try:
            numbers = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ShardError(f"{path}: cannot be read ({error}); run the tokens stage again") from None
        if len(numbers) != len(self):
            raise ShardError(f"{path}: {len(numbers)} documents, {INDEX} says {len(self)}; run the tokens stage again")
        return numbers

    def _open(self, shard: dict[str, Any]) -> Any:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            actual = "missing" if size is None else f"{size} bytes"
            raise ShardError(
                f"{path}: {actual}, {INDEX} says {shard['bytes']} bytes: the shard is cut short; "
                "run the tokens stage again"
            )
        return array_record_module.ArrayRecordReader(str(path), READ_OPTIONS)


class SourceDocuments:
    """The documents of one source in a split, numbered from 0; `numbers`: those that they have in the split."""

    def __init__(self, shards: TokenShards, name: str, numbers: np.ndarray) -> None:
        self._shards, self.numbers = shards, numbers
        self.lengths: np.ndarray = shards.lengths[numbers]
        self.index = {**shards.index, "source": name}

    def __getitem__(self, document: int) -> np.ndarray:
        return self._shards[int(self.numbers[document])]

    def name(self, document: int) -> str:
        """The document's id or place, as `TokenShards.name`."""
        return self._shards.name(int(self.numbers[document]))


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `index.json`."""
    path = folder / INDEX
    if not path.is_file():
        raise ShardError(f"{folder}: no token shards here (no {INDEX}); run the tokens stage")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: not valid JSON ({error}); run the tokens stage again") from None


def require_tokenizer(folder: Path, index: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises `ShardError` unless the shards were made by `tokenizer`."""
    made_by = index["tokenizer_fingerprint"]
    if made_by != tokenizer.fingerprint:
        raise ShardError(
            f"{folder / INDEX}: made by tokenizer {made_by[:12]} ({index['vocab_size']} words), this one is "
            f"{tokenizer.fingerprint[:12]} ({tokenizer.vocab_size} words); use that tokenizer or write the shards again"
        )
