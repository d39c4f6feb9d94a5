"""Identity: a document's id is a hash of its source and its text."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.steps import DocumentStep


@dataclass(frozen=True)
class Identify:
    """`id`: 32 hexadecimal digits, the same in every run that reads the same text from a source of the same name."""

    columns: ClassVar[pa.Schema] = pa.schema([("id", pa.string())])

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Column `id`: a hash of source and text."""
        pairs = zip(batch["source"].to_pylist(), batch["text"].to_pylist(), strict=True)
        ids = [hashlib.blake2b(f"{source}\0{text}".encode(), digest_size=16).hexdigest() for source, text in pairs]
        return pa.record_batch([pa.array(ids, pa.string())], schema=self.columns)


def identity_step(config: DataConfig) -> DocumentStep:
    """The step `identity`; it has no settings and removes nothing."""
    del config
    return DocumentStep("identity", Identify())
