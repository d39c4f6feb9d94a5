"""Local copies of files on the web: each whole, and copied again only if the server has another one.

A web server lists no folder, so of a folder those files are copied whose names are asked for. What must hold: a copy is
one answer's whole content; what the server said of its version, its ETag, is beside the copies.
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from lifecycle.core.files import alone, temporary, user_cache, write_text
from lifecycle.core.store import Missing, StoreError

WEB = ("https://", "http://")
TAGS = "tags.json"  # beside the copies of an address: name -> ETag, "" if the server gave none
ANSWER_S = 60.0  # without a byte
PUNCTUATION = "%/:?#[]@!$&'()*+,;="  # of an address (RFC 3986); all else in it is text, to be escaped


def is_on_web(place: str) -> bool:
    """Whether a place is an address on the web."""
    return place.startswith(WEB)


def _place(url: str) -> Path:
    """Where the copy of a file, or of a folder's files, on the web is."""
    name = PurePosixPath(urlsplit(url).path).name
    return _home(url) / "files" / (name if name not in ("", "..") else "file")


def web_tags(url: str) -> dict[str, str]:
    """The ETags of what was copied from an address, by the files' names."""
    tags = _home(url) / TAGS
    return json.loads(tags.read_text(encoding="utf-8")) if tags.is_file() else {}


def web_file(url: str) -> Path:
    """Copies a file from the web, unless the server says that it is the one that was copied. Raises `StoreError`,
    `Missing` for one that is not there."""
    place = _place(url)
    with alone(_home(url) / ".lock"):
        _bring_up_to_date(url, place, _home(url) / TAGS)
    return place


def web_folder(url: str, names: Iterable[str]) -> Path:
    """Copies those of the named files below an address that are there to one folder; other files stay in it."""
    place = _place(url)
    place.mkdir(parents=True, exist_ok=True)
    with alone(_home(url) / ".lock"):
        for name in names:
            try:
                _bring_up_to_date(f"{url.rstrip('/')}/{name}", place / name, _home(url) / TAGS)
            except Missing:
                (place / name).unlink(missing_ok=True)
    return place


def _home(url: str) -> Path:
    return user_cache() / "fetched" / sha256(url.encode()).hexdigest()[:16]


def _bring_up_to_date(url: str, file: Path, tags: Path) -> None:
    known: dict[str, str] = json.loads(tags.read_text(encoding="utf-8")) if tags.is_file() else {}
    tag = known.pop(file.name, "") if file.is_file() else ""
    asked = Request(quote(url, safe=PUNCTUATION), headers={"If-None-Match": tag} if tag else {})
    try:
        with urlopen(asked, timeout=ANSWER_S) as answer:
            write_text(tags, json.dumps(known))  # a kill from here on leaves a file that is copied again
            _receive(answer, file)
            write_text(tags, json.dumps(known | {file.name: answer.headers.get("ETag") or ""}))
    except HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            raise Missing(f"{url}: 404 Not Found; correct the address") from None
        if error.code != HTTPStatus.NOT_MODIFIED:
            raise StoreError(f"{url}: {error.code} {error.reason}; correct the address") from None
    except (OSError, HTTPException) as error:
        raise StoreError(f"{url}: no answer that can be used ({error}); check the network and the address") from None


def _receive(answer: Any, file: Path) -> None:
    """Writes an answer to a file, under a temporary name until it is whole; raises `OSError` if it ends too early."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary(file), "wb") as unfinished:
        copyfileobj(answer, unfinished)
    length = answer.headers.get("Content-Length")
    if length is not None and temporary(file).stat().st_size != int(length):
        raise OSError(f"{temporary(file).stat().st_size} bytes of {length}")
    temporary(file).replace(file)
