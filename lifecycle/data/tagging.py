"""The map step: files -> documents that are normalised, tagged, scored and masked. Pure, so it runs in any process.

Every document gets all tags and scores, also when an early rule removes it: selecting later under another threshold
needs no second reading. Personal data is masked in removed documents too.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.data.config import DataConfig
from lifecycle.data.documents import Document
from lifecycle.data.extract import Skipped, extract_file
from lifecycle.data.language import tag_language
from lifecycle.data.normalise import normalise
from lifecycle.data.pii import mask_pii
from lifecycle.data.quality import judge_quality
from lifecycle.data.sources import SourceFile

BATCH_BYTES = 500_000  # files of about a second's work: small enough that two workers end together


@dataclass(frozen=True)
class FileBatch:
    """Files for one call of `tag_files`."""

    files: tuple[SourceFile, ...]
    config: DataConfig


def batches_of(files: Sequence[SourceFile], config: DataConfig) -> Iterator[FileBatch]:
    """Cuts a list of files into batches of about `BATCH_BYTES`."""
    batch: list[SourceFile] = []
    size = 0
    for entry in files:
        batch.append(entry)
        size += file_size(entry)
        if size >= BATCH_BYTES:
            yield FileBatch(tuple(batch), config)
            batch, size = [], 0
    if batch:
        yield FileBatch(tuple(batch), config)


def file_size(entry: SourceFile) -> int:
    """Bytes of a file; 0 if it cannot be read, which is reported when it is opened."""
    try:
        return entry.file.stat().st_size
    except OSError:
        return 0


def tag_files(batch: FileBatch) -> tuple[list[Document], list[Skipped]]:
    """Reads a batch of files; returns its documents, in order, and what could not be used."""
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for entry in batch.files:
        for found in extract_file(entry, batch.config.sources[entry.source], batch.config.max_document_bytes):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                tag_document(found, batch.config)
                documents.append(found)
    return documents, skipped


def _masked(value: Any, config: DataConfig) -> Any:
    return mask_pii(value, config.pii, "text")[0] if isinstance(value, str) else value


def tag_document(document: Document, config: DataConfig) -> None:
    """Normalises, tags, scores, masks and names one document, in place."""
    document.text, document.edits = normalise(document.text, document.format)
    tag_language(document, config.language)
    judge_quality(document, config.quality)
    document.text, counts = mask_pii(document.text, config.pii, document.format)
    document.scores |= counts
    document.meta = {key: _masked(value, config) for key, value in document.meta.items()}
    content = f"{document.source}\0{document.text}".encode()
    document.id = hashlib.blake2b(content, digest_size=16).hexdigest()
