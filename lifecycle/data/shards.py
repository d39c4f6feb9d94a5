"""Documents as token shards: random access by document (`shard_writing.py` writes them).

One ArrayRecord record is one document: its token ids as little-endian uint16 (uint32 if the vocabulary is larger
than 65,536), with one BOS at the beginning and one EOS at the end. `index.json` lists the files with their SHA-256 and
what is in them. In the shards' order there are arrays of each document's number of tokens (`<split>.lengths.npy`), the
number of its source (`<split>.sources.npy`) and its id (`<split>.ids.npy`, 16 bytes), so packing and mixing are planned
without reading a token. `<split>.counts.npy` has the numbers of tokens in the order of the documents' files.

Documents are shuffled over all shards, of all corpora and sources: whoever reads shards one after the other has them at
random. Training reads a seeded permutation of them, another in each epoch, one by one (`training/document_rows.py`),
and resumes by arithmetic; each of N hosts makes 1/N of the rows of every batch, from any shard.

What must hold: the same documents and tokenizer give the same bytes, and a reader rejects shards that are truncated,
damaged or were made by another tokenizer.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from lifecycle.core.file_hashes import file_hashes
from lifecycle.text.tokenizer import Tokenizer

INDEX = "index.json"
SPLITS = {"train": "kept", "heldout": "heldout"}  # split -> the documents' file prefix
COUNTS = "counts"
# Per document: dtype, dimensions.
ARRAYS = {"lengths": ("<i4", ()), "sources": ("<i4", ()), "ids": ("u1", (16,)), COUNTS: ("<i4", ())}
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
OPEN_SHARDS = 256  # files that a reader keeps open: a process may have 1,024


class ShardError(ValueError):
    """Token shards are missing, damaged or made by another tokenizer."""


class TokenShards:
    """Random access to one split: `shards[i]` is document `i` as a one-dimensional array of token ids.

    `lengths[i]` is its number of tokens, known without reading it. If a tokenizer is passed, its fingerprint is
    checked. Threads may share a reader; a pickled copy reopens the files in its own process.
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
        self.lengths: np.ndarray = self._per_document("lengths")
        if int(self.lengths.sum()) != self.num_tokens:
            raise ShardError(f"{folder}: {split}.lengths.npy and {INDEX} differ in tokens; run the tokens stage again")
        self._starts = np.cumsum([0, *(shard["documents"] for shard in self._entry["shards"])])
        for shard in self._entry["shards"]:
            self._require_whole(shard)
        self._reader = lru_cache(OPEN_SHARDS)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenShards, (self.folder, self.split)

    def __len__(self) -> int:
        return self._entry["documents"]

    def __getitem__(self, document: int) -> np.ndarray:
        shard, record = self._place(document)
        try:
            return np.frombuffer(self._reader(shard).read([record])[0], dtype=self.dtype)
        except RuntimeError as error:  # a record's own checksum differs, or the file cannot be read
            path = self.folder / self._entry["shards"][shard]["file"]
            raise ShardError(f"{path}: document {record} is damaged ({error}); run the tokens stage again") from None

    def _place(self, document: int) -> tuple[int, int]:
        """(a document's shard, its number there)."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        return shard, int(document - self._starts[shard])

    def name(self, document: int) -> str:
        """The document's id."""
        return self._per_document("ids")[document].tobytes().hex()

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

    def source_tokens(self) -> dict[str, int]:
        """The tokens of each source that has documents in this split."""
        tokens = np.bincount(self._per_document("sources"), self.lengths).astype(np.int64)  # exact up to 2^53
        return {name: int(tokens[self.index["sources"].index(name)]) for name in self.sources}

    def domains(self) -> dict[str, np.ndarray]:
        """The documents of each source that has some, in order, by the source's name."""
        numbers = self._per_document("sources")
        return {self.index["sources"][number]: np.flatnonzero(numbers == number) for number in np.unique(numbers)}

    def _per_document(self, what: str) -> np.ndarray:
        path = self.folder / f"{self.split}.{what}.npy"
        try:
            numbers = np.load(path, mmap_mode="r" if what == "ids" else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ShardError(f"{path}: cannot be read ({error}); run the tokens stage again") from None
        if len(numbers) != len(self):
            raise ShardError(f"{path}: {len(numbers)} documents, {INDEX} says {len(self)}; run the tokens stage again")
        return numbers

    def _require_whole(self, shard: dict[str, Any]) -> None:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            actual = "missing" if size is None else f"{size} bytes"
            raise ShardError(
                f"{path}: {actual}, {INDEX} says {shard['bytes']} bytes: the shard is cut short; "
                "run the tokens stage again"
            )

    def _open(self, shard: int) -> Any:
        path = self.folder / self._entry["shards"][shard]["file"]
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
        """The document's id."""
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


def verify_shards(folder: Path) -> None:
    """Compares all files with the checksums of the index, for a folder that came from elsewhere; those of an artifact
    are in its manifest (`lifecycle trace --verify`). Raises `ShardError` naming those that differ."""
    splits = read_index(folder)["splits"].values()
    wanted = {shard["file"]: shard["sha256"] for split in splits for shard in split["shards"]}
    wanted |= {name: sha256 for split in splits for name, sha256 in split["arrays"].items()}
    missing = [name for name in wanted if not (folder / name).is_file()]
    found = file_hashes(folder, wanted.keys() - missing)
    if wrong := sorted(name for name, sha256 in wanted.items() if found.get(name) != sha256):
        raise ShardError(
            f"{folder}: {', '.join(wrong)}: not as {INDEX} says; copy them, or run the tokens stage, again"
        )
