"""The folder of what was fetched: WARC files of pages, and an index that says what became of each address.

A record is written before its line of the index, so what the index names is whole. What a killed process leaves behind
that, a record or a part of one, is cut when the folder is opened again. ISO 28500:2017 (WARC 1.1), a gzip member for
each record.
"""

import gzip
import json
import os
from base64 import b32encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha1
from pathlib import Path
from threading import Lock
from uuid import uuid4

from lifecycle.data.collecting.requests import Answer

INDEX = ".index.jsonl"  # hidden, so that no source takes it for rows
MAX_FILE = 1 << 30  # bytes, after which a file is followed by another
# Of the transfer, not of the content: the body is kept without them.
_OF_TRANSFER = ("transfer-encoding", "content-length", "connection", "keep-alive", "set-cookie")


@dataclass(frozen=True)
class Entry:
    """What became of an address: `fetched`, `refused` by robots.txt, or `failed`, and why. Of a page, where it is."""

    url: str
    outcome: str
    reason: str = ""
    detail: str = ""
    file: str = ""
    begin: int = 0
    end: int = 0
    etag: str = ""
    modified: str = ""


class Archive:
    """A folder with pages, open for more. Threads may add to it."""

    def __init__(self, folder: Path, software: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._software, self._lock = folder, software, Lock()
        self.entries = self._read_index()
        self._index = (folder / INDEX).open("a", encoding="utf-8")

    def close(self) -> None:
        """Writes all to disk."""
        os.fsync(self._index.fileno())
        self._index.close()

    def add_page(self, url: str, at: str, answer: Answer) -> None:
        """Writes a page, which was at the address `at` behind redirections of `url`."""
        record = gzip.compress(_record(at, answer), mtime=0)
        with self._lock:
            file = self._file()
            with open(file, "ab") as pages:
                begin = pages.tell()
                pages.write(record)
                pages.flush()
                os.fsync(pages.fileno())
            kept = answer.header("ETag"), answer.header("Last-Modified")
            self._say(Entry(url, "fetched", "", at, file.name, begin, begin + len(record), *kept))

    def add(self, entry: Entry) -> None:
        """Writes what became of an address without a page."""
        with self._lock:
            self._say(entry)

    def _say(self, entry: Entry) -> None:
        self._index.write(json.dumps(asdict(entry)) + "\n")
        self._index.flush()
        self.entries[entry.url] = entry

    def _file(self) -> Path:
        files = sorted(self._folder.glob("pages-*.warc.gz"))
        if files and files[-1].stat().st_size < MAX_FILE:
            return files[-1]
        number = int(files[-1].name[len("pages-") :].partition(".")[0]) + 1 if files else 0
        file = self._folder / f"pages-{number:05}.warc.gz"
        file.write_bytes(gzip.compress(_head(self._software, file.name), mtime=0))
        return file

    def _read_index(self) -> dict[str, Entry]:
        """The last entry of each address; a line that was not finished, and pages that are not there, are left out.
        What is behind the last record that the index names is removed."""
        path = self._folder / INDEX
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        if lines and lines[-1]:
            with open(path, "rb+") as file:
                file.truncate(path.stat().st_size - len(lines[-1]))
        entries = [Entry(**json.loads(line)) for line in lines[:-1]]
        sizes = {file.name: file.stat().st_size for file in self._folder.glob("pages-*.warc.gz")}
        there = [entry for entry in entries if entry.end <= sizes.get(entry.file, 0)]
        self._cut(there)
        return {entry.url: entry for entry in there}

    def _cut(self, entries: Iterable[Entry]) -> None:
        ends: dict[str, int] = {}
        for entry in entries:
            ends[entry.file] = max(ends.get(entry.file, 0), entry.end)
        for file in self._folder.glob("pages-*.warc.gz"):
            if file.name not in ends:
                file.unlink()
            elif file.stat().st_size > ends[file.name]:
                os.truncate(file, ends[file.name])


def _head(software: str, name: str) -> bytes:
    fields = f"software: {software}\r\nformat: WARC File Format 1.1\r\nrobots: classic\r\n".encode()
    return _whole("warcinfo", "application/warc-fields", fields, {"WARC-Filename": name})


def _record(url: str, answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers if name.lower() not in _OF_TRANSFER]
    lines += [f"Content-Length: {len(answer.body)}", "", ""]
    block = "\r\n".join(lines).encode("latin-1", "replace") + answer.body
    fields = {"WARC-Target-URI": url, "WARC-Payload-Digest": _digest(answer.body)}
    return _whole("response", "application/http;msgtype=response", block, fields)


def _whole(kind: str, type: str, block: bytes, fields: dict[str, str]) -> bytes:
    fields = {
        "WARC-Type": kind, "WARC-Record-ID": f"<urn:uuid:{uuid4()}>",
        "WARC-Date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **fields, "WARC-Block-Digest": _digest(block),
        "Content-Type": type, "Content-Length": str(len(block)),
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"WARC/1.1\r\n{head}\r\n".encode() + block + b"\r\n\r\n"


def _digest(data: bytes) -> str:
    return f"sha1:{b32encode(sha1(data, usedforsecurity=False).digest()).decode()}"
