"""Documents as token shards: written once, read by document index at random.

One ArrayRecord record is one document: its token ids as little-endian uint16 (uint32 from 65,536 words on), beginning
with BOS and ending with EOS, once. `index.json` says what is there; `<split>.lengths.npy` has the tokens of each
document in shard order, so that packing can be planned without reading a token.

What must hold: the same documents and tokenizer give the same bytes, and a reader refuses shards that are cut short
or were made by another tokenizer.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import batched, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stub

from lifecycle.core.artifact import write_text
from lifecycle.core.progress import Progress
from lifecycle.text.tokenizer import Tokenizer

INDEX = "index.json"
SPLITS = {"train": "kept", "heldout": "heldout"}  # split -> the documents' file prefix
BATCH = 256  # documents read and encoded together: enough for the tokenizer's threads, some MB of text
# One document a record group: a random read decodes one document and no neighbours.
WRITE_OPTIONS = "group_size:1,uncompressed"
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ShardError(ValueError):
    """Token shards are missing, damaged or made by another tokenizer."""


def write_token_shards(
    documents: Path, tokenizer: Tokenizer, out: Path, progress: Progress, docs_per_shard: int = 4096
) -> dict[str, Any]:
    """Encodes `kept-*.parquet` and `heldout-*.parquet` into `out`; returns stats.

    Raises `ShardError` when there is no kept document. Without held-out documents the split exists and is empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {split: sorted(documents.glob(f"{prefix}-*.parquet")) for split, prefix in SPLITS.items()}
    total = sum(pq.read_metadata(path).num_rows for paths in files.values() for path in paths)
    progress.start("shards", total)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    splits: dict[str, Any] = {}
    for split, paths in files.items():
        done = sum(counts["documents"] for counts in splits.values())
        splits[split] = _write_split(split, paths, tokenizer, dtype, out, progress, docs_per_shard, done)
    if not splits["train"]["documents"]:
        raise ShardError(f"{documents}: no kept document to train on; loosen the data filters or add sources")
    index = {
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
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
    texts = _texts(paths)
    while (first := next(texts, None)) is not None:
        path = out / f"{split}-{len(shards):05d}.array_record"
        sizes, read = _write_shard(path, chain([first], islice(texts, docs_per_shard - 1)), tokenizer, dtype)
        lengths += sizes
        text_bytes += read
        shards.append({"file": path.name, "documents": len(sizes), "bytes": path.stat().st_size})
        progress.update(done + len(lengths), tokens=sum(lengths))
    np.save(out / f"{split}.lengths.npy", np.array(lengths, dtype="<i4"))
    return {"documents": len(lengths), "tokens": sum(lengths), "text_bytes": text_bytes, "shards": shards}


def _texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH, columns=["text"]):
            yield from batch.column("text").to_pylist()


def _write_shard(path: Path, texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> tuple[list[int], int]:
    """Writes one shard; returns tokens per document and the UTF-8 bytes of all text."""
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

    `lengths[i]` is its length without reading it. Pass the tokenizer to have its fingerprint checked. Threads may
    share a reader; another process opens its own (a copy sent there opens the files again).
    """

    def __init__(self, folder: Path, split: str = "train", tokenizer: Tokenizer | None = None) -> None:
        self.folder, self.split = Path(folder), split
        self.index = read_index(self.folder)
        if tokenizer is not None:
            require_tokenizer(self.folder, self.index, tokenizer)
        if split not in self.index["splits"]:
            raise ShardError(f"{folder}: no split {split!r}; there are {', '.join(self.index['splits'])}")
        self.dtype = np.dtype(self.index["dtype"])
        self._entry = self.index["splits"][split]
        self.lengths: np.ndarray = self._read_lengths()
        self._starts = np.cumsum([0, *(shard["documents"] for shard in self._entry["shards"])])
        self._readers = [self._open(shard) for shard in self._entry["shards"]]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenShards, (self.folder, self.split)

    def __len__(self) -> int:
        return self._entry["documents"]

    def __getitem__(self, document: int) -> np.ndarray:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        record = self._readers[shard].read([int(document - self._starts[shard])])[0]
        return np.frombuffer(record, dtype=self.dtype)

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, BOS and EOS included."""
        return self._entry["tokens"]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents' text: the denominator of bits per byte."""
        return self._entry["text_bytes"]

    def _read_lengths(self) -> np.ndarray:
        path = self.folder / f"{self.split}.lengths.npy"
        try:
            lengths = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ShardError(f"{path}: cannot be read ({error}); run the shards stage again") from None
        if len(lengths) != self._entry["documents"] or int(lengths.sum()) != self._entry["tokens"]:
            raise ShardError(f"{path}: {len(lengths)} documents, {INDEX} says {self._entry['documents']}; run again")
        return lengths

    def _open(self, shard: dict[str, Any]) -> Any:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            actual = "missing" if size is None else f"{size} bytes"
            raise ShardError(
                f"{path}: {actual}, {INDEX} says {shard['bytes']} bytes: the shard is cut short; "
                "run the shards stage again"
            )
        return array_record_module.ArrayRecordReader(str(path), READ_OPTIONS)


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `index.json`."""
    path = folder / INDEX
    if not path.is_file():
        raise ShardError(f"{folder}: no token shards here (no {INDEX}); run the shards stage")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: not valid JSON ({error}); run the shards stage again") from None


def require_tokenizer(folder: Path, index: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises `ShardError` unless the shards were made by `tokenizer`."""
    made_by = index["tokenizer_fingerprint"]
    if made_by != tokenizer.fingerprint:
        raise ShardError(
            f"{folder / INDEX}: made by tokenizer {made_by[:12]} ({index['vocab_size']} words), this one is "
            f"{tokenizer.fingerprint[:12]} ({tokenizer.vocab_size} words); use that tokenizer or write the shards again"
        )
