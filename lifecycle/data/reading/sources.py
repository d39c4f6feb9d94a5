"""Sources: the files of a configuration, the format of each, and a fingerprint of them all.

The list is sorted by source and path, independent of the file system's order. Links to folders are not followed (they
can loop); links to files are. What is no file, such as a pipe, and a link to a folder that no source's walk comes to
are in the list, so that reading says that they were left out, and are never opened. A source at an address such as
`s3://bucket/folder` is listed in its store, whose sizes and tags are its fingerprint: only the stage that reads it
copies its files. One file on the web is copied when the list is made.
"""

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import batched, chain
from pathlib import Path, PurePosixPath
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.core.cores import available_cores
from lifecycle.core.fetched import copy_of, is_stored, local_copy, objects_at
from lifecycle.core.store import StoredObject
from lifecycle.core.web import web_file
from lifecycle.core.web_address import is_on_web
from lifecycle.data.config import DataConfig, SourceConfig
from lifecycle.data.reading.code_language import language_of_name
from lifecycle.data.reading.row_parts import RowPart
from lifecycle.data.reading.streams import inner_name

FORMAT_OF_SUFFIX = {
    ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".rst": "rst", ".rest": "rst",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".tex": "latex", ".ltx": "latex", ".eml": "mail",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv",
    ".tsv": "csv", ".warc": "warc", ".wet": "warc", ".mbox": "mbox", ".epub": "epub", ".pdf": "pdf", ".tar": "tar",
    ".zip": "zip",
}  # fmt: skip
ARCHIVES = ("tar", "zip")
BLOCK_BYTES = 1 << 20  # read at a time to be hashed: a part of a file may have 400 MB, and each core hashes one
# Formats that a source's `format` does not replace: they hold what is in it.
CONTAINERS = ("jsonl", "json", "parquet", "arrow", "csv", "warc", "mbox", "epub", "pdf", *ARCHIVES)
TEXT_NAMES = (
    "license", "licence", "copying", "copyright", "readme", "notice", "authors", "changelog", "changes", "news", "todo",
)  # fmt: skip
_MAN_PAGE = re.compile(r"\.[1-9][a-z]{0,6}")  # a section, and what its pages belong to: .1, .3pm, .1ssl


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: `source` indexes `data.sources`, `path` is POSIX and relative to the source's folder."""

    source: int
    file: Path  # of one in a store: where `fetch_sources` copies it
    path: str
    format: str  # a `Format` or one of `CONTAINERS`; "" if the name does not tell
    stored: StoredObject | None = None
    part: RowPart | None = None  # of a large file of rows; None: all of it


def source_folder(source: SourceConfig) -> Path:
    """The folder or file of a source, with `${stdlib}` substituted, or the copy of a file on the web; raises
    `ConfigError` if it does not exist, `StoreError` for what the web does not give."""
    if is_on_web(source.path):
        return web_file(source.path)
    path = Path(source.path.replace("${stdlib}", sysconfig.get_path("stdlib"))).expanduser()
    if "${" in str(path):
        raise ConfigError(f"source {source.name!r}: path {source.path!r}: only ${{stdlib}} is substituted")
    if not path.exists():
        raise ConfigError(f"source {source.name!r}: {path} does not exist; correct data.sources[].path")
    return path


def list_files(config: DataConfig) -> list[SourceFile]:
    """All files of all sources, sorted; raises `ConfigError` for a source whose globs match nothing."""
    files: list[SourceFile] = []
    for number, source in enumerate(config.sources):
        matches = sorted(_listed(source) if is_stored(source.path) else _matches(source), key=lambda entry: entry[0])
        if all(file.is_dir() for _, file, _ in matches):
            raise ConfigError(
                f"source {source.name!r}: no file in {source.path} matches include {list(source.include)} "
                f"without exclude {list(source.exclude)}; correct them in data.sources"
            )
        files += [SourceFile(number, file, path, format_of(path, source), stored) for path, file, stored in matches]
    return files


def fetch_sources(config: DataConfig) -> None:
    """Copies the files of sources in a store to this machine; those that are here and unchanged stay."""
    for source in config.sources:
        if is_stored(source.path):
            local_copy(source.path, lambda name, source=source: _is_included(name, source))


def format_of(path: str, source: SourceConfig) -> str:
    """The format of a file, or of what is in a compressed one: from its suffix for what holds several documents, else
    the source's `format` if set, else from suffix or name; "" if these do not tell."""
    name = PurePosixPath(inner_name(path)[0])
    by_suffix = FORMAT_OF_SUFFIX.get(name.suffix.lower(), "")
    if by_suffix in CONTAINERS:
        return by_suffix
    if source.format:
        return source.format
    if language_of_name(path):
        return "code"
    if name.stem.lower() in TEXT_NAMES:
        return by_suffix or "text"
    return by_suffix or ("man" if _MAN_PAGE.fullmatch(name.suffix) else "")


def source_fingerprint(config: DataConfig) -> dict[str, Any]:
    """Per source: number of files, bytes, and a hash of all paths and contents, for the artifact's key; the files are
    read by as many threads as there are cores."""
    totals = {source.name: hashlib.sha256() for source in config.sources}
    counts = {source.name: [0, 0] for source in config.sources}
    files, cores = list_files(config), available_cores()
    parts = batched(
        files, 1 + len(files) // (8 * cores)
    )  # handing a thread one small file takes longer than to read it
    with ThreadPoolExecutor(cores) as pool:
        contents = chain.from_iterable(pool.map(_hashes, parts))
    for entry, content in zip(files, contents, strict=True):
        name = config.sources[entry.source].name
        counts[name][0] += 1
        counts[name][1] += file_size(entry)
        totals[name].update(f"{entry.path}\0{content}\n".encode())
    return {
        name: {"files": counts[name][0], "bytes": counts[name][1], "sha256": totals[name].hexdigest()}
        for name in totals
    }


def _hashes(files: Sequence[SourceFile]) -> list[str]:
    return [content_hash(entry) for entry in files]


def _printable(name: str) -> str:
    """A file name as text; its bytes that are not UTF-8, which Parquet and JSON cannot store, become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def content_hash(entry: SourceFile) -> str:
    """What is in a file, or in a part of it, as a hash; of one in a store by its tag there."""
    part = entry.part
    span = None if part is None else (part.begin, part.end)
    if entry.stored is not None:
        return entry.stored.tag if span is None else f"{entry.stored.tag} {span}"
    place = "" if part is None else f" {part.begin} {part.first_row} {part.schema}"  # documents are named by them
    try:
        found = entry.file.stat()
        if not S_ISREG(found.st_mode):
            return f"no file: {S_IFMT(found.st_mode):o}"
        return _hashed(entry.file, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino), span) + place
    except OSError as error:  # the pipeline skips and lists it; once it is readable, the fingerprint changes
        return f"unreadable: {error.errno}"


@lru_cache(maxsize=1 << 20)
def _hashed(path: Path, stat: tuple[int, ...], span: tuple[int, int] | None) -> str:
    """The SHA-256 of a file, or of a span of bytes, computed once while `stat`, which begins with its size, stays: for
    the stage's key, and for its partitions'. A file of the system may have no size and no end."""
    begin, end = span or (0, stat[0])
    with open(path, "rb") as file:
        found, left = hashlib.sha256(), end - file.seek(begin)
        while left and (block := file.read(min(left, BLOCK_BYTES))):
            found.update(block)
            left -= len(block)
        return found.hexdigest()


def file_size(entry: SourceFile) -> int:
    """Bytes of a file; 0 if it cannot be read, which is reported when it is opened."""
    if entry.stored is not None:
        return entry.stored.bytes
    try:
        found = entry.file.stat()
    except OSError:
        return 0
    return found.st_size if S_ISREG(found.st_mode) else 0


def no_file(file: Path) -> str | None:
    """What something in a source's folder is that holds no text; None of a file. Raises `OSError` if it cannot be
    asked."""
    mode = file.stat().st_mode
    if S_ISREG(mode) or (S_ISDIR(mode) and not file.is_symlink()):
        return None  # a folder that cannot be listed: opening it tells why
    if S_ISDIR(mode):
        return "a link to a folder outside the source, which is not followed: make it a source of its own"
    return "a pipe, socket or device"


def _listed(source: SourceConfig) -> Iterator[tuple[str, Path, StoredObject]]:
    listed, place = objects_at(source.path), copy_of(source.path)
    for name, stored in listed.objects.items():
        if listed.is_file:
            yield name, place, stored
        elif _is_included(name, source):
            yield name, place / name, stored


def is_excluded(name: str, source: SourceConfig) -> bool:
    """Whether a source leaves out a name, or a folder that it is in."""
    path = PurePosixPath(name)
    folders = (above.parts for above in path.parents if above.parts)
    return _is_left_out(path.parts, source) or any(_is_left_out(above, source, is_folder=True) for above in folders)


def _is_included(name: str, source: SourceConfig) -> bool:
    return not is_excluded(name, source) and _is_asked(PurePosixPath(name).parts, source)


def _is_asked(parts: tuple[str, ...], source: SourceConfig) -> bool:
    return any(_globs(parts, pattern) for pattern in source.include)


def _is_left_out(parts: tuple[str, ...], source: SourceConfig, is_folder: bool = False) -> bool:
    return any(_globs(parts, pattern, is_folder) for pattern in source.exclude)


def _globs(parts: tuple[str, ...], pattern: str, is_folder: bool = False) -> bool:
    """Whether a glob matches the parts of a name, as `Path.glob` does in a folder: `a/**` is the folder `a` and all in
    it, but no file `a`."""

    def match(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
        if not patterns:
            return not parts
        if patterns == ("**",):
            return is_folder or bool(parts)
        if patterns[0] == "**":
            return match(parts, patterns[1:]) or (bool(parts) and match(parts[1:], patterns))
        return bool(parts) and fnmatchcase(parts[0], patterns[0]) and match(parts[1:], patterns[1:])

    return match(parts, _glob_parts(pattern))


@lru_cache
def _glob_parts(pattern: str) -> tuple[str, ...]:
    return PurePosixPath(pattern).parts


def _matches(source: SourceConfig) -> Iterator[tuple[str, Path, None]]:
    """What is below a folder and no folder itself. A link to nothing, to itself, or to a folder elsewhere, and a folder
    that cannot be listed are among it: reading them tells why they have no documents."""
    root = source_folder(source)
    if root.is_file():
        yield _printable(root.name), root, None
        return
    for pattern in (*source.include, *source.exclude):
        if not _glob_parts(pattern) or pattern.startswith("/"):
            raise ConfigError(f"source {source.name!r}: a glob of include or exclude cannot be used: {pattern!r}")
    unlisted: list[str] = []
    for folder, folders, files in os.walk(root, onerror=lambda error: unlisted.append(error.filename)):
        above = Path(folder).relative_to(root).parts
        folders[:] = (name for name in folders if not _is_left_out((*above, name), source, is_folder=True))
        unlisted.extend(str(link) for name in folders if _leads_out(link := Path(folder, name), root))
        for name in files:
            parts = (*above, name)
            if _is_asked(parts, source) and not _is_left_out(parts, source):
                yield _printable("/".join(parts)), Path(folder, name), None
    for name in unlisted:
        yield _printable(Path(name).relative_to(root).as_posix()), Path(name), None


def _leads_out(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to one that is not below `root`."""
    return folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve())
