"""Extraction: turns a file's bytes into documents, or says why there are none.

Nothing is executed, and nothing is guessed beyond what a reader would accept. A file that cannot be decoded, is binary,
empty or too large is reported as `Skipped`; so is a single broken row, with its line, and the rest of its file is used.
"""

import ast
import io
import json
import math
import re
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingModuleSource]
from resiliparse.parse.encoding import detect_encoding  # pyright: ignore[reportMissingModuleSource]
from resiliparse.parse.html import HTMLTree

from lifecycle.core.strict_yaml import parse_yaml
from lifecycle.data.config import SourceConfig
from lifecycle.data.sources import SourceFile

SNIFF_BYTES = 8192  # searched for a NUL byte, as Git does
MAX_CONTROL_SHARE = 0.01  # binary data decoded as text has 10 % or more; text files have next to none
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
         b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip
_SURROGATES = re.compile("[\ud800-\udfff]")
_YAML_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TOML_FRONT = re.compile(r"\A\+\+\+[ \t]*\n(.*?)\n\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL)


# The input columns of the map steps. `meta` is a JSON object; `surrogates` counts lone surrogates, which Arrow cannot
# store and which became U+FFFD in the text.
RAW_COLUMNS = pa.schema([
    ("text", pa.string()), ("source", pa.string()), ("path", pa.string()), ("license", pa.string()),
    ("format", pa.string()), ("meta", pa.string()), ("surrogates", pa.int64()),
])  # fmt: skip


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read.

    `path` is relative to the source's folder; for a part of a file it is `file#key` or `file:line`.
    """

    text: str
    source: str
    path: str
    license: str
    format: str
    meta: dict[str, Any]
    num_surrogates: int


def raw_batch(documents: Sequence[RawDocument]) -> pa.RecordBatch:
    """A batch with `RAW_COLUMNS`."""
    rows = [
        {
            "text": document.text, "source": document.source, "path": document.path, "license": document.license,
            "format": document.format, "surrogates": document.num_surrogates,
            "meta": json.dumps(document.meta, sort_keys=True),  # ASCII: metadata may contain lone surrogates
        }
        for document in documents
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=RAW_COLUMNS)


@dataclass(frozen=True)
class Skipped:
    """A file, or a row as `file:line`, that was not used, and why."""

    source: str
    path: str
    reason: str
    detail: str


class UnreadableError(ValueError):
    """A file or row without a usable document; `reason` is counted in the funnel."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def extract_file(entry: SourceFile, source: SourceConfig, max_bytes: int) -> Iterator[RawDocument | Skipped]:
    """Yields the documents of a file, and a `Skipped` for the file or for each row that cannot be used."""
    try:
        if entry.format == "jsonl":
            yield from _rows(_jsonl_rows(entry, max_bytes), entry, source, max_bytes)
        elif entry.format == "parquet":
            yield from _rows(_parquet_rows(entry, source), entry, source, max_bytes)
        else:
            yield from _extract(read_bytes(entry, max_bytes), entry.format, entry.path, source)
    except UnreadableError as error:
        yield Skipped(source.name, entry.path, error.reason, str(error))


def read_bytes(entry: SourceFile, max_bytes: int) -> bytes:
    """A file's content; raises `UnreadableError` if it is of unknown format, unreadable, empty, too large or binary."""
    if not entry.format:
        raise UnreadableError(
            "unknown_format", "unknown file extension: set the source's `format`, or exclude the file"
        )
    try:
        size = entry.file.stat().st_size
        if size > max_bytes:
            raise UnreadableError("too_large", f"{size} bytes, data.max_document_bytes is {max_bytes}")
        data = entry.file.read_bytes()
    except OSError as error:
        raise UnreadableError("unreadable", error.strerror or str(error)) from None
    if not data.strip():
        raise UnreadableError("empty", f"{len(data)} bytes and no text")
    if b"\0" in data[:SNIFF_BYTES] and _bom(data) is None:
        raise UnreadableError("binary", "holds NUL bytes")
    return data


def decode(data: bytes, format: str, path: str) -> str:
    """Decodes by byte-order mark, declared encoding, UTF-8 or detection; raises `UnreadableError` if none fits.

    A few wrong bytes in a file of known encoding become U+FFFD, as in a browser; they are counted by `normalise`.
    """
    encoding = _bom(data) or _declared(data, format, path)
    try:
        text = data.decode(encoding or "utf-8", "replace" if encoding else "strict")
    except (UnicodeError, LookupError):  # codecs such as `idna` or `undefined` raise a plain UnicodeError
        text = _decode_detected(data)
    if len(_CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise UnreadableError("undecodable", "more than 1 in 100 characters are control characters or replacements")
    return text


def parse_html(html: str) -> tuple[str, dict[str, Any]]:
    """The readable text and the title of a page, however broken its markup, without navigation and footers."""
    tree = HTMLTree.parse(html)
    text = extract_plain_text(tree, preserve_formatting=True, main_content=True, alt_texts=False)
    if not text.strip():  # nothing in the page looks like an article
        text = extract_plain_text(tree, preserve_formatting=True, alt_texts=False)
    title = (tree.title or "").strip()
    return text, {"title": title} if title else {}


def parse_markdown(text: str) -> tuple[str, dict[str, Any]]:
    """The Markdown unchanged but without its front matter (YAML or TOML), whose plain values become metadata."""
    text = text.replace("\r\n", "\n")
    loaders: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
        (_YAML_FRONT, parse_yaml),
        (_TOML_FRONT, tomllib.loads),
    )
    for pattern, load in loaders:
        if match := pattern.match(text):
            try:
                front = load(match[1])
            except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError, RecursionError):
                continue  # a horizontal rule looks the same
            if isinstance(front, dict):
                return text[match.end() :], _plain_values(front)
    return text, {}


def parse_python_dict(text: str) -> Iterator[tuple[str, str]]:
    """The string values of the dict literals that a Python module assigns, by key; parsed, never executed."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: the parser's stack is full
        raise UnreadableError("broken_python", f"not parseable as Python: {error}") from None
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            match key, value:
                case ast.Constant(value=str(name)), ast.Constant(value=str(content)):
                    yield name, content


def _extract(data: bytes, format: str, path: str, source: SourceConfig) -> Iterator[RawDocument]:
    text = decode(data, format, path)
    meta: dict[str, Any] = {}
    if format == "python_dict":
        entries = [(key, content) for key, content in parse_python_dict(text) if content.strip()]
        if not entries:
            raise UnreadableError("no_text", "no dict literal with strings is assigned in it")
        for key, content in entries:
            yield _document(content, "text", f"{path}#{key}", {"key": key}, source)
        return
    if format == "html":
        text, meta = parse_html(text)
    elif format == "markdown":
        text, meta = parse_markdown(text)
    if not text.strip():
        raise UnreadableError("no_text", f"no text in the {format}")
    yield _document(text, format, path, meta, source)


def _document(text: str, format: str, path: str, meta: dict[str, Any], source: SourceConfig) -> RawDocument:
    text, num_surrogates = _SURROGATES.subn("\ufffd", text)  # a JSON row can contain them
    path = path.encode("utf-8", "replace").decode()  # and so can the keys of a Python dict
    return RawDocument(text, source.name, path, source.license, format, meta, num_surrogates)


def _rows(
    rows: Iterable[tuple[int, dict[str, Any] | UnreadableError]],
    entry: SourceFile,
    source: SourceConfig,
    max_bytes: int,
) -> Iterator[RawDocument | Skipped]:
    """Turns numbered rows into documents; raises `UnreadableError` for a file without a single usable row."""
    used = number = 0
    for number, row in rows:
        path = f"{entry.path}:{number}"
        try:
            if isinstance(row, UnreadableError):
                raise row
            yield _row_document(row, path, source, max_bytes)
            used += 1
        except UnreadableError as error:
            yield Skipped(source.name, path, error.reason, str(error))
    if not number:
        raise UnreadableError("empty", "no rows")
    if not used and entry.part is None:
        raise UnreadableError("no_usable_row", f"no row with text in column {source.text_column!r}")


def _row_document(row: dict[str, Any], path: str, source: SourceConfig, max_bytes: int) -> RawDocument:
    text = row.get(source.text_column)
    if not isinstance(text, str):
        what = "no" if text is None else f"{type(text).__name__} instead of a string in"
        raise UnreadableError(
            "broken_row", f"{what} column {source.text_column!r}; columns: {', '.join(map(str, row))}"
        )
    if not text.strip():
        raise UnreadableError("empty", "the row's text is empty")
    if len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise UnreadableError("too_large", f"the row's text is longer than data.max_document_bytes, {max_bytes}")
    meta = _plain_values({key: value for key, value in row.items() if key != source.text_column})
    format = source.format or "text"
    if format == "html":
        text, own_meta = parse_html(text)
        meta |= own_meta
    elif format == "markdown":
        text, own_meta = parse_markdown(text)
        meta |= own_meta
    if not text.strip():
        raise UnreadableError("no_text", f"no text in the {format}")
    return _document(text, format, path, meta, source)


def _jsonl_rows(entry: SourceFile, max_bytes: int) -> Iterator[tuple[int, dict[str, Any] | UnreadableError]]:
    limit = 8 * max_bytes + 65_536  # JSON may need six bytes per character, and a row has other columns
    number, begin, end = (entry.part.first_row, entry.part.begin, entry.part.end) if entry.part else (0, 0, math.inf)
    with _opened(entry) as file:
        file.seek(begin)
        while file.tell() < end and (line := file.readline(limit)):
            number += 1
            if len(line) == limit and not line.endswith(b"\n"):
                while (rest := file.readline(limit)) and not rest.endswith(b"\n"):
                    pass
                yield number, UnreadableError("too_large", f"a line of more than {limit} bytes")
            elif line.strip():
                yield number, _json_row(line)


def _json_row(line: bytes) -> dict[str, Any] | UnreadableError:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return UnreadableError("broken_row", f"not JSON: {error}")
    if not isinstance(row, dict):
        return UnreadableError("broken_row", f"a JSON {type(row).__name__} where an object is expected")
    return row


def _parquet_rows(entry: SourceFile, source: SourceConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(entry.file) as file:
            if source.text_column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UnreadableError("no_usable_row", f"no column {source.text_column!r}; columns: {names}")
            number = 0 if entry.part is None else entry.part.first_row
            groups = None if entry.part is None or entry.part.groups is None else range(*entry.part.groups)
            for batch in file.iter_batches(256, row_groups=groups):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableError("broken_file", f"not a readable Parquet file: {error}") from None


def _opened(entry: SourceFile) -> io.BufferedReader:
    try:
        return open(entry.file, "rb")
    except OSError as error:
        raise UnreadableError("unreadable", error.strerror or str(error)) from None


def _bom(data: bytes) -> str | None:
    return next((encoding for bom, encoding in _BOMS.items() if data.startswith(bom)), None)


def _declared(data: bytes, format: str, path: str) -> str | None:
    """The encoding that a Python file's cookie or a page's meta tag names; None if there is none or it is unknown."""
    if format == "html":
        return detect_encoding(data, from_html_meta=True)
    if format == "python_dict" or PurePosixPath(path).suffix in (".py", ".pyi"):
        try:
            cookie = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            return None if cookie == "utf-8" else cookie  # utf-8 is also the default without a cookie
        except SyntaxError:  # an unknown cookie, or no cookie and not UTF-8
            return None
    return None


def _decode_detected(data: bytes) -> str:
    encoding = detect_encoding(data, html5_compatible=False)
    if encoding is None:
        raise UnreadableError("undecodable", "not UTF-8, and no other encoding was recognised")
    try:
        return data.decode(encoding, "replace")
    except LookupError:
        raise UnreadableError("undecodable", f"looks like {encoding}, which Python cannot decode") from None


def _plain_values(mapping: dict[Any, Any]) -> dict[str, Any]:
    """The values that JSON can store without loss; dates become text, nested values are left out."""
    kept = {str(key): value for key, value in mapping.items() if isinstance(value, str | int | float | bool)}
    dates = {str(key): value.isoformat() for key, value in mapping.items() if hasattr(value, "isoformat")}
    return kept | dates
