"""What reading gives: documents as they were read, what could not be read and why, and what lies between the two.

A container (a file of rows, an archive, a mailbox) gives `Content`s; `extract.py` makes documents of them. What must
hold: whatever was in a file is in one of its documents or in a `Skipped`.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lifecycle.data.measures.license_expressions import all_apply
from lifecycle.data.web_names import ADDRESS_BYTES, address_hash

# The input columns of the map steps. `url` and `time` (ISO 8601) are null where nothing is known of them, `begin` and
# `end` where a document is no span of bytes (see `Content`). `address` is a hash of `url` in one spelling, by which
# documents are compared once it is masked. `meta` is a JSON object; `surrogates` counts lone surrogates, which Arrow
# cannot store and which became U+FFFD in the text.
RAW_COLUMNS = pa.schema([
    ("text", pa.string()), ("source", pa.string()), ("path", pa.string()), ("url", pa.string()),
    ("address", pa.binary(ADDRESS_BYTES)), ("time", pa.string()), ("begin", pa.int64()), ("end", pa.int64()),
    ("license", pa.string()), ("format", pa.string()), ("meta", pa.string()), ("surrogates", pa.int64()),
])  # fmt: skip
SURROGATES = re.compile("[\ud800-\udfff]")
MOST_BITS = 14_000  # of a number: Python turns 4,300 digits into text, and back, and no more
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\ud800-\udfff]+")


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read.

    `path` is relative to the source's folder; for a part of a file it is `file:number`, with the number of a row or a
    mail from 1 or the offset of a WARC record, or `file#name`, with the key of a dict or the name in an archive.
    """

    text: str
    source: str
    path: str
    license: str
    format: str
    meta: dict[str, Any]
    num_surrogates: int
    url: str | None = None
    time: str | None = None
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Skipped:
    """A file, or a part of one as its documents are named, that was not used, and why."""

    source: str
    path: str
    reason: str
    detail: str


class UnreadableError(ValueError):
    """A file or a part of one without a usable document; `reason` is counted in the funnel."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Content:
    """A document before it is text: what is in a file, or in a part of one, and what is known of it from outside.

    `begin` and `end` are its bytes in the file that the path names before its last `:` or `#`, of a compressed file in
    what it decompresses to; of a WARC they are those of the record in the file as it is.
    """

    path: str
    format: str
    data: bytes | str
    meta: dict[str, Any] = field(default_factory=dict)
    url: str | None = None
    time: str | None = None
    license: str | None = None
    charset: str | None = None
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Refused:
    """A part of a file that cannot be used."""

    path: str
    error: UnreadableError


def raw_batch(documents: Sequence[RawDocument]) -> pa.RecordBatch:
    """A batch with `RAW_COLUMNS`."""
    rows = [
        {
            "text": document.text, "source": document.source, "path": document.path, "url": document.url,
            "address": None if document.url is None else address_hash(document.url),
            "time": document.time, "begin": document.begin, "end": document.end, "license": document.license,
            "format": document.format, "surrogates": document.num_surrogates,
            "meta": json.dumps(document.meta, sort_keys=True),  # ASCII: metadata may contain lone surrogates
        }
        for document in documents
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=RAW_COLUMNS)


def plain_values(mapping: dict[Any, Any]) -> dict[str, Any]:
    """The values that JSON can store without loss; dates become text, all others are left out: nested ones, NaN and
    infinity, numbers of thousands of digits."""
    kept = {str(key): value for key, value in mapping.items() if _is_plain(value)}
    dates = {str(key): value.isoformat() for key, value in mapping.items() if hasattr(value, "isoformat")}
    return kept | dates


def _is_plain(value: Any) -> bool:
    match value:
        case int():
            return value.bit_length() <= MOST_BITS
        case float():
            return math.isfinite(value)
    return isinstance(value, str)


def license_in(value: Any) -> str | None:
    """The licence that a value names; None for what names none. Of a list, as files of a repository have them, all
    apply, as far as anyone knows."""
    if isinstance(value, list):
        names = (name.strip() for name in value if isinstance(name, str))
        return all_apply([*dict.fromkeys(filter(None, names))]) or None
    return value.strip() or None if isinstance(value, str) else None


def address_in(value: Any) -> str | None:
    """The address that a value is; None for what is none."""
    return value if isinstance(value, str) and _ADDRESS.fullmatch(value) else None
