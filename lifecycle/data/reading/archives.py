"""Archives: the files in a tar or zip, read where they are. Nothing is ever written to disk.

Members that no honest archive of documents has are refused: names that lead out of it, links, devices, encrypted ones,
ways to compress in which a few bytes can take all memory. What must hold: every member is given, refused, or behind a
fault that is told. APPNOTE 6.3 (zip), POSIX.1-2001 (pax).
"""

import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from stat import S_IFLNK, S_IFMT
from typing import BinaryIO, cast

from lifecycle.data.reading.raw import Refused, UnreadableError
from lifecycle.data.reading.streams import CHUNK, MAX_RATIO, BrokenStreamError, Budget, Guarded

MAX_HEADER = 1 << 20  # of a tar's member: long names and pax records are kept in memory
MAX_DIRECTORY = 32 << 20  # of a zip, about 300,000 members, which take 200 MB of memory
BLOCK = tarfile.BLOCKSIZE
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_SEPARATORS = re.compile(r"[/\\]")
_UNPRINTABLE = re.compile("[\0\ud800-\udfff]")
_TAR_FAULTS = (tarfile.TarError, OSError, ValueError, OverflowError, struct.error)
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, struct.error)


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name there, and its bytes in the archive if they are there as they are."""

    name: str
    file: io.BufferedReader
    begin: int | None = None
    end: int | None = None


def tar_members(file: BinaryIO, path: str, wanted: Callable[[str], bool]) -> Iterator[Member | Refused]:
    """The wanted files of a tar, in its order; each must be read before the next is asked for. Raises `UnreadableError`
    for a file that is none."""
    blocks, last = _Blocks(file), ""
    try:
        tar = blocks.reading_header(lambda: tarfile.TarFile(fileobj=cast(BinaryIO, blocks), mode="r"))
    except BrokenStreamError:
        raise
    except _TAR_FAULTS as error:
        raise UnreadableError("broken_file", f"not a tar archive: {error}") from None
    try:
        while (info := blocks.reading_header(tar.next)) is not None:
            tar.members.clear()  # pyrefly: ignore[missing-attribute] - it would keep all of them
            last = info.name
            name, fault = _checked(info.name, _tar_fault(info))
            if fault is not None:
                yield Refused(f"{path}#{name}", fault)
            elif not info.isdir() and wanted(name):
                content = tar.extractfile(info)
                assert content is not None
                guarded = Guarded(content.read, _TAR_FAULTS)
                yield Member(name, guarded.buffered(), info.offset_data, info.offset_data + info.size)
    except _TAR_FAULTS as error:
        yield Refused(f"{path}#", _behind(last, str(error)))
        return
    if fault := blocks.fault_at_end():
        yield Refused(f"{path}#", _behind(last, fault))


def _behind(member: str, what: str) -> UnreadableError:
    return UnreadableError("broken_archive", f"nothing behind member {member!r} can be read: {what}")


def _link(to: str) -> UnreadableError:
    """A link is not followed: what it names is read under its own name, if it is in the archive."""
    return UnreadableError("no_text", f"a link to {to}")


def _tar_fault(info: tarfile.TarInfo) -> UnreadableError | None:
    if info.issym() or info.islnk():
        return _link(repr(info.linkname))
    if info.issparse():
        return UnreadableError("sparse", "a sparse file")
    if not (info.isreg() or info.isdir()):
        return UnreadableError("device", "a device or pipe")
    return None


def _checked(name: str, fault: UnreadableError | None) -> tuple[str, UnreadableError | None]:
    """The name without a leading `./`, as text that can be stored, and what is wrong with it or the member."""
    shown = _UNPRINTABLE.sub("\ufffd", name)
    parts = _SEPARATORS.split(name)
    if not parts[0] or re.match("[A-Za-z]:", name) or ".." in parts or "\0" in name:
        return shown, UnreadableError("unsafe_path", "a name that leads out of the archive")
    return str(PurePosixPath(shown)), fault


class _Blocks:
    """A file as `tarfile` reads one, front to back; `last` is what it read last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at, self.last = file, 0, b""
        self._is_header = False

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER and self._is_header:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self._file.read(size)
        self._at += len(self.last)
        return self.last

    def reading_header[T](self, read: Callable[[], T]) -> T:
        """What a call returns that reads a header, of which no piece may be large."""
        self._is_header = True
        found = read()
        self._is_header = False
        return found

    def fault_at_end(self) -> str | None:
        """What is wrong if `tarfile` has read all that it can: there must be an empty block, and nothing behind it."""
        if self.last.strip(b"\0") or len(self.last) != BLOCK:
            return "no header, and no mark of the archive's end"
        try:
            while rest := self._file.read(CHUNK):
                if rest.strip(b"\0"):
                    return "the archive's end is marked here, and there is more"
        except (OSError, UnreadableError) as error:
            return str(error)
        return None

    def seek(self, to: int) -> None:
        if self._file.seekable():
            self._at = self._file.seek(to)
        while self._at < to and (skipped := self._file.read(min(CHUNK, to - self._at))):
            self._at += len(skipped)


def zip_members(
    file: BinaryIO, path: str, wanted: Callable[[str], bool], budget: Budget, max_bytes: int
) -> Iterator[Member | Refused]:
    """The wanted files of a zip, in the order of its directory. Raises `UnreadableError` for a file that is none."""
    archive = open_zip(file)
    for info in archive.infolist():
        name, fault = _checked(info.orig_filename, _zip_fault(info, max_bytes))
        if fault is not None:
            yield Refused(f"{path}#{name}", fault)
        elif not info.is_dir() and wanted(name):
            try:
                yield Member(name, open_member(archive, info, budget))
            except UnreadableError as error:
                yield Refused(f"{path}#{name}", error)


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """A zip archive whose directory fits into memory; raises `UnreadableError`."""
    if _directory_bytes(file) > MAX_DIRECTORY:
        raise UnreadableError("too_large", f"a directory of more than {MAX_DIRECTORY} bytes")
    try:
        return zipfile.ZipFile(file)
    except _ZIP_FAULTS as error:
        raise UnreadableError("broken_file", f"not a zip archive: {error}") from None


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> io.BufferedReader:
    """A member's content; raises `UnreadableError`, and so does reading it."""
    try:
        content = archive.open(info)
    except (*_ZIP_FAULTS, RuntimeError) as error:
        raise UnreadableError("broken_member", str(error)) from None
    return Guarded(content.read, _ZIP_FAULTS, budget).buffered()


def _directory_bytes(file: BinaryIO) -> int:
    """The size of a zip's directory, of which all is read at once, as the end of the file says."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 65_557))
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        return 0
    if (end64 := tail.rfind(_END64, 0, end)) >= 0 and len(tail) >= end64 + 48:
        return struct.unpack_from("<Q", tail, end64 + 40)[0]
    return struct.unpack_from("<L", tail, end + 12)[0]


def _zip_fault(info: zipfile.ZipInfo, max_bytes: int) -> UnreadableError | None:
    if S_IFMT(info.external_attr >> 16) == S_IFLNK:
        return _link("another file")
    if info.flag_bits & 1:
        return UnreadableError("encrypted", "an encrypted member")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return UnreadableError("unknown_format", f"compressed by method {info.compress_type}; save it with deflate")
    if info.file_size > max(max_bytes, MAX_RATIO * info.compress_size):
        return UnreadableError("too_compressed", f"{info.compress_size} bytes that become {info.file_size}: a bomb?")
    return None
