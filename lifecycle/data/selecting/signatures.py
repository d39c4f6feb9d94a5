"""Signatures of a corpus: what later corpora are compared with, without its texts.

A row for each kept and held-out document: its name, the hashes of its text and address, its keys, and the set of its
word 5-grams as 64-bit hashes, from which the Jaccard similarity is the same as from the text. They take eight bytes for
each word: this is no way to save space, but one to keep texts where they are. Who has a text finds it in them; nobody
else reads one out of them, but words that are guessed can be tried.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.core.progress import Progress
from lifecycle.data.documents import Split, Stretch, document_files, stretches_of
from lifecycle.data.measures.identity import HASH_BYTES
from lifecycle.data.selecting.similarity import shingles
from lifecycle.data.web_names import ADDRESS_BYTES

FILES = "signatures"  # the prefix of the files' names
SHINGLES = "shingles"  # the column
TAKEN: tuple[Split, ...] = ("kept", "heldout")
_SCHEMA = pa.schema([
    ("source", pa.string()), ("path", pa.string()), ("content", pa.binary(HASH_BYTES)),
    ("address", pa.binary(ADDRESS_BYTES)), ("bands", pa.list_(pa.uint64())), (SHINGLES, pa.list_(pa.uint64())),
])  # fmt: skip


def write_signatures(documents: Path, out: Path, progress: Progress) -> int:
    """Writes `signatures-*.parquet`, a file for each of the documents' in a folder; returns the number of documents."""
    files = [file for split in TAKEN for file in document_files(documents, split)]
    progress.start("signatures", len(files))
    num_documents = 0
    for number, file in enumerate(files):
        num_documents += _write(stretches_of([file], 0), out / f"{FILES}-{number:05d}.parquet")
        progress.update(number + 1)
    return num_documents


def _write(stretches: list[Stretch], path: Path) -> int:
    num_documents = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for stretch in stretches:
            documents = stretch.read([*_SCHEMA.names[:-1], "text"])
            sets = pa.array([shingles(text) for text in documents["text"].to_pylist()], _SCHEMA.field(SHINGLES).type)
            writer.write_table(documents.select(_SCHEMA.names[:-1]).append_column(SHINGLES, sets).cast(_SCHEMA))
            num_documents += len(documents)
    return num_documents
