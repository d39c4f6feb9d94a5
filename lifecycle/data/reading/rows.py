"""Rows to contents: which columns are a row's text, address, time and licence; the others are its metadata."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.raw import Content, Refused, UnreadableError, address_in, license_in, plain_values
from lifecycle.data.reading.row_readers import Row
from lifecycle.data.reading.times import iso_time


def row_contents(rows: Iterable[Row], path: str, source: SourceConfig, max_bytes: int) -> Iterator[Content | Refused]:
    """The content of each row, or why there is none."""
    for row in rows:
        place = f"{path}:{row.number}"
        try:
            if isinstance(row.columns, UnreadableError):
                raise row.columns
            text = _text(row.columns, source.text_column, max_bytes)
        except UnreadableError as error:
            yield Refused(place, error)
            continue
        meta = plain_values({name: value for name, value in row.columns.items() if name != source.text_column})
        if license := license_in(row.columns.get(source.license_column)):  # a list of them is no metadata
            meta.pop(source.license_column, None)
        yield Content(
            place, source.format or "text", text, meta, begin=row.begin, end=row.end,
            url=_taken(meta, (source.url_column,), address_in), time=_taken(meta, source.time_columns, iso_time),
            license=license,
        )  # fmt: skip


def _text(columns: dict[str, Any], name: str, max_bytes: int) -> str:
    text = columns.get(name)
    if not isinstance(text, str):
        if text is None and name in columns:
            raise UnreadableError("broken_row", f"null in column {name!r}")
        what = "no" if text is None else f"{type(text).__name__} instead of a string in"
        raise UnreadableError("no_text_column", f"{what} column {name!r}; columns: {', '.join(map(str, columns))}")
    if not text.strip():
        raise UnreadableError("empty", "the row's text is empty")
    if 4 * len(text) > max_bytes and len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise UnreadableError("too_large", f"the row's text is longer than data.max_document_bytes, {max_bytes}")
    return text


def _taken(meta: dict[str, Any], names: Iterable[str], convert: Callable[[Any], str | None]) -> str | None:
    """Moves the first value that can be converted out of the metadata."""
    for name in names:
        if (value := convert(meta.get(name))) is not None:
            del meta[name]
            return value
    return None
