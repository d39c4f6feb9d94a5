"""The values of a JSON array in a file of any size, one after the other (RFC 8259).

Only brackets, commas and quotes are looked at, so a value that is no JSON is given as it is, and those behind it too.
Memory holds a chunk of the file and one value, of a value above the limit nothing.
"""

import io
import re
from codecs import BOM_UTF8
from collections.abc import Iterator

from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.streams import CHUNK, BrokenStreamError

_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_MARK = re.compile(rb'["{}\[\],]')

type Found = tuple[int, int, bytes | UnreadableError]


def json_array(file: io.BufferedReader, limit: int) -> Iterator[Found]:
    """Yields the offsets and bytes of each value of the array that a file holds, or why it is lost."""
    marks, held, at = _Marks(), _Held(limit), 0
    try:
        while chunk := file.read(CHUNK):
            first = 0
            for depth, place in marks.in_chunk(chunk):
                if held.begin is not None:
                    held.add(chunk[first:place])
                    yield from held.taken()
                elif chunk[first:place].removeprefix(BOM_UTF8).strip():
                    break
                first = place + 1
                held.begin = at + first if depth else None
            if held.begin is not None:
                held.add(chunk[first:])
            at += len(chunk)
            if held.begin is None and chunk[first:].strip():
                yield at - len(chunk) + first, at, UnreadableError("broken_row", "text behind the end of the array")
                return
    except BrokenStreamError as error:
        yield held.begin or 0, at, error
        return
    if held.begin is not None:
        yield held.begin, at, UnreadableError("broken_row", "the file ends inside the array")


class _Marks:
    """Finds the marks that begin, separate and end the values of the outermost array."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False

    def in_chunk(self, chunk: bytes) -> Iterator[tuple[int, int]]:
        """Yields the depth behind each of them, 1 inside the array and 0 behind it, and its place."""
        place = 0
        while place < len(chunk):
            if self._in_string:
                place = self._behind_string(chunk, place)
            elif found := _MARK.search(chunk, place):
                place = found.end()
                before = self._depth
                self._see(found[0])
                if (before, self._depth) in ((0, 1), (1, 0)) or (self._depth == 1 and found[0] == b","):
                    yield self._depth, found.start()
            else:
                return

    def _see(self, mark: bytes) -> None:
        if mark == b'"':
            self._in_string = True
        elif mark in b"[{":
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1

    def _behind_string(self, chunk: bytes, place: int) -> int:
        """Where the string ends, or the end of the chunk; a backslash there escapes the next chunk's first byte."""
        found = _IN_STRING.match(chunk, place + self._is_escaped)
        assert found is not None
        end = found.end()
        self._is_escaped = chunk[end : end + 1] == b"\\"
        self._in_string = self._is_escaped or end == len(chunk)
        return end + 1


class _Held:
    """The value that is being read."""

    def __init__(self, limit: int) -> None:
        self.begin: int | None = None
        self._limit, self._data, self._size = limit, bytearray(), 0

    def add(self, data: bytes) -> None:
        """Takes more of the value."""
        self._size += len(data)
        if self._size <= self._limit:
            self._data += data
        else:
            self._data.clear()

    def taken(self) -> Iterator[Found]:
        """The value, unless there is none."""
        assert self.begin is not None
        end, data = self.begin + self._size, bytes(self._data)
        if self._size > self._limit:
            what = f"a value of {self._size} bytes, more than {self._limit}"
            yield self.begin, end, UnreadableError("too_large", what)
        elif value := data.strip():
            begin = self.begin + data.index(value)
            yield begin, begin + len(value), value
        self._data.clear()
        self._size = 0
