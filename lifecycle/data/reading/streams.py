"""Files as streams of bytes, decompressed on the way: gzip, bzip2, xz and Zstandard, whatever their size.

Memory holds a window of a stream, never its whole. What a file decompresses to has a limit (`Budget`), so that a bomb
ends instead of the run. A fault in the bytes raises `BrokenStreamError` once; who reads on gets what is behind it: of
gzip the next whole member (RFC 1952, section 2.2), of the others nothing.
"""

import bz2
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

from lifecycle.data.reading.raw import UnreadableError

CHUNK = 1 << 18  # bytes that are decompressed at a time
INPUT = 1 << 16
MAX_RATIO = 300  # DEFLATE's limit is 1,032; prose has 3 to 5, the most repetitive tables 100
LEAST_BUDGET = 20  # documents of `max_document_bytes`
XZ_MEMORY = 256 << 20  # `xz -9` needs 65 MB to decompress
GZIP = b"\x1f\x8b\x08"
COMPRESSION_OF_SUFFIX = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_WHOLE_SUFFIX = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


class BrokenStreamError(UnreadableError):
    """A fault in the bytes of a file; `at`: how many good ones came before it, decompressed."""

    def __init__(self, reason: str, detail: str, at: int) -> None:
        super().__init__(reason, detail)
        self.at = at


class Budget:
    """What a file of `size` bytes may decompress to, with all that is in it."""

    def __init__(self, size: int, max_bytes: int) -> None:
        self.limit = self._left = max(MAX_RATIO * size, LEAST_BUDGET * max_bytes)

    def take(self, num_bytes: int, at: int) -> None:
        """Raises `BrokenStreamError` if the limit is passed, by the bytes behind `at`."""
        self._left -= num_bytes
        if self._left < 0:
            what = f"its file decompresses to more than {self.limit} bytes, which is what a bomb does"
            raise BrokenStreamError("too_compressed", what, at)


class _Decoder(Protocol):
    """Decompresses one member of a file, as `bz2.BZ2Decompressor` does."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class GzipDecoder:
    """Decompresses one gzip member; of what comes before a fault, one byte at most is lost."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)
        self.pending = b""  # at a fault: the input from it on

    @property
    def eof(self) -> bool:
        """Whether the member has ended, with the right checksum and length."""
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        """Whether all input is used."""
        return not self._inflate.unconsumed_tail and not self.eof

    @property
    def unused_data(self) -> bytes:
        """The input behind the member."""
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most `max_length` bytes of what the member holds. Raises `zlib.error` at a fault, once all before it is
        returned."""
        before, data = self._inflate.copy(), self._inflate.unconsumed_tail + data
        try:
            return self._inflate.decompress(data, max_length)
        except zlib.error:
            self._inflate = before
            if good := self._up_to_fault(data, max_length):
                return good
            self.pending = data
            raise

    def _up_to_fault(self, data: bytes, max_length: int) -> bytes:
        good = bytearray()
        for size in (4096, 128, 8, 1):
            with suppress(zlib.error):
                while len(good) < max_length:
                    before = self._inflate.copy()
                    if not (piece := before.decompress(data, min(size, max_length - len(good)))):
                        break
                    good += piece
                    self._inflate, data = before, before.unconsumed_tail
        return bytes(good)


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


_DECODERS: dict[str, Callable[[], _Decoder]] = {"gzip": GzipDecoder, "bz2": bz2.BZ2Decompressor, "xz": _xz_decoder}
_FAULTS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class Members(io.RawIOBase):
    """What the members of a compressed file hold: one after the other, or each by itself (`is_joined` False).

    The file is at `begin`; members from `last` on are not read. `start` is where in the file the member is that is
    being read, `end` where the one before it has ended.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: str,
        budget: Budget,
        begin: int = 0,
        last: float = math.inf,
        is_joined: bool = True,
    ) -> None:
        self._file, self._compression, self._budget = file, compression, budget
        self._last, self._is_joined = last, is_joined
        self.start = self.end = self._num_read = begin
        self._input = b""  # what is not yet used of what was read
        self._recent = b""  # what was read last: a fault may be noticed in the member behind it
        self._decoder: _Decoder | None = self._new_decoder()
        self._at = 0

    def _new_decoder(self) -> _Decoder:
        return _DECODERS[self._compression]()

    @property
    def is_open(self) -> bool:
        """Whether there is a member to read."""
        return self._decoder is not None and self.start < self._last

    def advance(self) -> None:
        """Goes behind the member that is being read. Raises `BrokenStreamError` for a fault in what was left of it,
        and is behind that then."""
        while self.read(CHUNK):
            pass
        if self._decoder is not None:
            self._begin_next(self._decoder.unused_data)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # pyrefly: ignore[bad-override] - what its reader hands it
        """Raises `BrokenStreamError` at a fault, and for a bomb."""
        while self._decoder is not None and self.start < self._last:
            if self._decoder.eof:
                if not self._is_joined:
                    return 0
                self._begin_next(self._decoder.unused_data)
            elif found := self._decoded(self._decoder, len(buffer)):
                at, self._at = self._at, self._at + len(found)
                try:
                    self._budget.take(len(found), at)
                except BrokenStreamError:
                    self._decoder = None
                    raise
                buffer[: len(found)] = found
                return len(found)
        return 0

    def _decoded(self, decoder: _Decoder, size: int) -> bytes:
        data = b""
        if decoder.needs_input:
            data = self._input or self._read()
            self._input = b""
        try:
            found = decoder.decompress(data, size)
        except _FAULTS as error:
            raise self._broken(str(error), decoder.pending if isinstance(decoder, GzipDecoder) else data) from None
        if not found and not data and not decoder.eof and decoder.needs_input:
            raise self._broken("the file ends too early", b"")
        return found

    def _read(self) -> bytes:
        data = self._file.read(INPUT)
        self._num_read += len(data)
        self._recent = self._recent[-INPUT:] + data
        return data

    def _begin_next(self, behind: bytes) -> None:
        """Goes to the next member; some tools fill up a file with zeros behind the last."""
        self.end = self._num_read - len(behind)
        while not (behind := behind.lstrip(b"\0")):
            if not (behind := self._read()):
                self._decoder = None
                return
        self._input, self.start = behind, self._num_read - len(behind)
        self._decoder = self._new_decoder()

    def _broken(self, what: str, data: bytes) -> BrokenStreamError:
        at, started = self._num_read - len(data), self.start
        self._find_next(self._recent)
        self.end = self._num_read if self._decoder is None else self.start
        behind = "nothing behind it is read" if self._decoder is None else f"reading goes on at byte {self.start}"
        detail = f"broken {self._compression} member of byte {started}, at about byte {at}: {what}; {behind}"
        return BrokenStreamError("broken_compression", detail, self._at)

    def _find_next(self, data: bytes) -> None:
        """Goes to the first thing behind a fault that begins as a gzip member does and can be decompressed."""
        self._decoder, first = None, self.start + 1
        while self._compression == "gzip":
            place = data.find(GZIP, max(0, first - (self._num_read - len(data))))
            if place < 0 or len(data) - place < INPUT:
                more = self._read()
                data = data[place if place >= 0 else -2 :] + more
                if place < 0 and not more:
                    return
                if place < 0:
                    continue
                place = 0
            if _is_gzip(data[place : place + INPUT]):
                self.start = self._num_read - len(data) + place
                self._input, self._decoder = data[place:], self._new_decoder()
                return
            data = data[place + 1 :]


def _is_gzip(data: bytes) -> bool:
    with suppress(zlib.error):
        return bool(zlib.decompressobj(31).decompress(data, 16))  # a member that is broken later is told by itself
    return False


class Guarded(io.RawIOBase):
    """A file that a library reads: its faults become `BrokenStreamError`s, and if it decompresses, it has a budget."""

    def __init__(
        self, read: Callable[[int], bytes], faults: tuple[type[Exception], ...], budget: Budget | None = None
    ) -> None:
        self._read, self._faults, self._budget = read, faults, budget
        self._at, self._is_done = 0, False

    def buffered(self) -> io.BufferedReader:
        """The file as others read it."""
        return io.BufferedReader(cast(io.RawIOBase, self), CHUNK)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # pyrefly: ignore[bad-override] - what its reader hands it
        """Raises `BrokenStreamError` at a fault or for a bomb, behind which is nothing."""
        if self._is_done:
            return 0
        self._is_done = True  # unless all goes well
        try:
            found = self._read(len(buffer))
        except BrokenStreamError:
            raise
        except self._faults as error:
            raise BrokenStreamError("broken_compression", f"{error or type(error).__name__}", self._at) from None
        if self._budget is not None:
            self._budget.take(len(found), self._at)
        self._at += len(found)
        buffer[: len(found)] = found
        self._is_done = not found
        return len(found)


def decompressed(file: BinaryIO, compression: str, budget: Budget) -> io.BufferedReader:
    """What a compressed file holds, as a stream that cannot seek."""
    if compression == "zstd":
        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
        return Guarded(stream.read, (OSError,), budget).buffered()
    return io.BufferedReader(cast(io.RawIOBase, Members(file, compression, budget)), CHUNK)


def inner_name(name: str) -> tuple[str, str | None]:
    """The name of what is in a compressed file, and its compression; the name itself and None for other files."""
    path = PurePosixPath(name)
    if whole := _WHOLE_SUFFIX.get(path.suffix.lower()):
        return inner_name(str(path.with_suffix(whole)))
    if compression := COMPRESSION_OF_SUFFIX.get(path.suffix.lower()):
        return str(path.with_suffix("")), compression
    return name, None


def lines(
    file: BinaryIO, limit: int, begin: int = 0, end: float = math.inf
) -> Iterator[tuple[int, int, bytes | UnreadableError]]:
    """Yields the offsets of each line and the line, or why it is lost: it is longer than `limit`, or the file is broken
    there. `begin` is where the file is, and no line that begins at `end` or behind it is read."""
    at = begin
    while at < end:
        try:
            read = file.readline(limit)
            line: bytes | UnreadableError = read
            behind = at + len(read)
            if len(read) == limit and not read.endswith(b"\n"):
                behind += _rest_of_line(file)
                line = UnreadableError("too_large", f"a line of {behind - at} bytes, more than {limit}")
        except BrokenStreamError as error:
            line, behind = error, begin + error.at
        else:
            if behind == at:
                return
        yield at, behind, line
        at = behind


def _rest_of_line(file: BinaryIO) -> int:
    size = 0
    while rest := file.readline(CHUNK):
        size += len(rest)
        if rest.endswith(b"\n"):
            break
    return size


def read_whole(file: BinaryIO, max_bytes: int) -> bytes:
    """What is left of a file; raises `UnreadableError` if it is more than `data.max_document_bytes`."""
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnreadableError("too_large", f"more than {max_bytes} bytes, data.max_document_bytes")
    return data
