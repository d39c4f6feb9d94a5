"""Small files of every kind, written and read as the pipeline reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument, Skipped
from lifecycle.data.reading.sources import SourceFile, format_of

type Found = list[RawDocument | Skipped]


def extract(path: Path, content: bytes | str, max_bytes: int = 100_000, **settings: Any) -> Found:
    """What is found in a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return extract_path(path, max_bytes, **settings)


def extract_path(path: Path, max_bytes: int = 100_000, **settings: Any) -> Found:
    """What is found in a file."""
    source = SourceConfig.model_validate({"name": "s", "path": str(path), "license": "MIT", **settings})
    return list(extract_file(SourceFile(0, path, path.name, format_of(path.name, source)), source, max_bytes))


def documents(found: Sequence[RawDocument | Skipped]) -> list[RawDocument]:
    return [entry for entry in found if isinstance(entry, RawDocument)]


def refused(found: Sequence[RawDocument | Skipped]) -> list[Skipped]:
    return [entry for entry in found if isinstance(entry, Skipped)]


def reasons(found: Sequence[RawDocument | Skipped]) -> list[tuple[str, str]]:
    """Path and reason of each part that was refused."""
    return [(entry.path, entry.reason) for entry in refused(found)]


def document(found: Found) -> RawDocument:
    (only,) = found
    assert isinstance(only, RawDocument), only
    return only


def skipped(found: Found) -> Skipped:
    (only,) = found
    assert isinstance(only, Skipped), only
    return only
