"""Identity: a document's id is a hash of its source and its text; and whether it may be used (`rights.py`)."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.rights import rights_rules
from lifecycle.data.measures.steps import DocumentStep

HASH_BYTES = 16


@dataclass(frozen=True)
class Identify:
    """`id`: 32 hexadecimal digits, the same in every run that reads the same text from a source of the same name.
    `content`: a hash of the text."""

    columns: ClassVar[pa.Schema] = pa.schema([("id", pa.string()), ("content", pa.binary(HASH_BYTES))])

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Columns `id` and `content`."""
        pairs = zip(batch["source"].to_pylist(), batch["text"].to_pylist(), strict=True)
        contents = [(source, text.encode()) for source, text in pairs]
        ids = [_hash(f"{source}\0".encode() + text).hex() for source, text in contents]
        columns = (ids, [_hash(text) for _, text in contents])
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.columns.types, strict=True)]
        return pa.record_batch(arrays, schema=self.columns)


def identity_step(config: DataConfig) -> DocumentStep:
    """The step `rights`."""
    rules = rights_rules(config.rights)
    return DocumentStep("rights", Identify(), rules, settings="data.rights" if rules else "")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
