"""Identity: a document's id is a hash of its text's hash and its source; and whether it may be used (`rights.py`)."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
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
        data, offsets = utf8(batch["text"])
        contents = [_hash(data[begin:end]) for begin, end in pairwise(offsets.tolist())]
        sources = (name.encode() for name in batch["source"].to_pylist())
        ids = [_hash(content + source).hex() for content, source in zip(contents, sources, strict=True)]
        return pa.record_batch([pa.array(ids), pa.array(contents, pa.binary(HASH_BYTES))], schema=self.columns)


def identity_step(config: DataConfig) -> DocumentStep:
    """The step `rights`."""
    rules = rights_rules(config.rights)
    return DocumentStep("rights", Identify(), rules, settings="data.rights" if rules else "")


def _hash(data: bytes | NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
