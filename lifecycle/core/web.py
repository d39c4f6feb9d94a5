"""Local copies of files on the web: each whole, and copied again only if the server has another one.

A web server lists no folder, so of a folder those files are copied whose names are asked for. What must hold: a copy is
one answer's whole content; what the server said of its version is beside the copies, and of no file that is not there.
"""

import errno
import json
import time
from collections.abc import Callable, Iterable, Mapping
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, responses
from pathlib import Path
from shutil import copyfileobj
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lifecycle.core.files import alone, temporary, user_cache, write_text
from lifecycle.core.store import Missing, StoreError
from lifecycle.core.web_address import WebAddress

VERSIONS = "versions.json"  # beside the copies of an address: file's name -> `Version`
CONDITIONS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}  # what the server said, how it is asked
ANSWER_S = 60.0  # without a byte
PAUSES_S = (0.5, 2.0, 8.0)  # before a request is repeated
LONGEST_PAUSE_S = 60.0  # that a server may ask for
PASSING = (429, 500, 502, 503, 504)
ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
FORBIDDEN = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

type Version = dict[str, str]  # one header, by which the server is asked whether it has another one


class _PassingError(StoreError):
    """The same request may have an answer later; `wait_s`: as the server asked."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def web_tags(place: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """What names the versions of the files, or of those with these names, that were copied from an address: by name,
    the ETag or time that the server gave, "" if it gave none."""
    versions = _Copies(WebAddress.of(place)).versions
    wanted = versions if names is None else versions.keys() & set(names)
    return {name: next(iter(versions[name].values()), "") for name in sorted(wanted)}


def web_file(place: str) -> Path:
    """Copies a file from the web, unless the server says that it is the one that was copied. Raises `StoreError`,
    `Missing` for one that is not there, `ConfigError` for no address."""
    copies = _Copies(WebAddress.of(place))
    with copies.alone():
        copies.bring(copies.address, copies.place)
    return copies.place


def web_folder(place: str, names: Iterable[str], is_left: Callable[[str], bool] = lambda name: False) -> Path:
    """Copies those of the named files below an address that are there to one folder. Others stay in it, but for those
    that `is_left`. Raises as `web_file`."""
    copies, names = _Copies(WebAddress.of(place)), tuple(names)
    copies.place.mkdir(parents=True, exist_ok=True)
    with copies.alone():
        for file in copies.place.iterdir():
            if file.name not in names and is_left(file.name):
                copies.remove(file)
        for name in names:
            try:
                copies.bring(copies.address.below(name), copies.place / name)
            except Missing:
                copies.remove(copies.place / name)
    return copies.place


class _Copies:
    """The copies of what is at an address, and their versions."""

    def __init__(self, address: WebAddress) -> None:
        self.address = address
        self._home = user_cache() / "fetched" / address.key
        self.place = self._home / "files" / address.name

    def alone(self) -> Any:
        """Other processes of this machine wait while the block runs."""
        return alone(self._home / ".lock")

    @property
    def versions(self) -> dict[str, Version]:
        """By the files' names."""
        file = self._home / VERSIONS
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def bring(self, address: WebAddress, file: Path) -> None:
        """Copies a file, unless it is the one that was copied."""
        file.parent.mkdir(parents=True, exist_ok=True)
        known = self.versions
        new = _asked_often(address, temporary(file), known.get(file.name, {}) if file.is_file() else {})
        if new is None:
            return
        self._forget(file)  # a kill from here on leaves a file that is copied again
        temporary(file).replace(file)
        write_text(self._home / VERSIONS, json.dumps(known | {file.name: new}))

    def remove(self, file: Path) -> None:
        """Removes a copy."""
        self._forget(file)
        file.unlink(missing_ok=True)

    def _forget(self, file: Path) -> None:
        known = self.versions
        if known.pop(file.name, None) is not None:
            write_text(self._home / VERSIONS, json.dumps(known))


def _asked_often(address: WebAddress, file: Path, version: Version) -> Version | None:
    """As `_asked`; a request that may have an answer later is repeated."""
    for pause in PAUSES_S:
        try:
            return _asked(address, file, version)
        except _PassingError as error:
            time.sleep(max(pause, error.wait_s))
    return _asked(address, file, version)


def _asked(address: WebAddress, file: Path, version: Version) -> Version | None:
    """Writes the content to a file and returns its version; None if it is still the given one."""
    try:
        with urlopen(Request(address.url, headers=version), timeout=ANSWER_S) as answer:
            _receive(answer, file)
            return _version(answer.headers)
    except HTTPError as error:
        with error:
            if error.code == HTTPStatus.NOT_MODIFIED:
                return None
            raise _refusal(address, error) from None
    except (OSError, HTTPException) as error:
        if getattr(error, "errno", None) in NO_ROOM:
            raise StoreError(f"{address}: no room for it in {file.parent} ({error}); make room") from None
        why = f"no answer that can be used ({error}), asked {len(PAUSES_S) + 1} times"
        raise _PassingError(f"{address}: {why}; check the network and the address") from None


def _refusal(address: WebAddress, error: HTTPError) -> StoreError:
    """What an answer's status means. Its reason is not said: a redirection's has an address with all that it holds."""
    said = f"{address}: {error.code} {responses.get(error.code, '')}".rstrip()
    if error.code in ABSENT:
        return Missing(f"{said}; correct the address")
    if error.code in PASSING:
        return _PassingError(f"{said}, asked {len(PAUSES_S) + 1} times; try again later", _asked_pause(error.headers))
    if error.code in FORBIDDEN:
        return StoreError(
            f"{said}: not public, and no login is sent; correct the address, or copy it to this machine with its "
            "publisher's own tool (a gated model: accept its terms first) and give the path"
        )
    return StoreError(f"{said}; correct the address")


def _asked_pause(headers: Mapping[str, str] | Message) -> float:
    asked = headers.get("Retry-After") or ""
    return min(float(asked), LONGEST_PAUSE_S) if asked.isdecimal() else 0.0


def _version(headers: Mapping[str, str] | Message) -> Version:
    given = next((name for name in CONDITIONS if headers.get(name)), None)
    return {} if given is None else {CONDITIONS[given]: str(headers[given])}


def _receive(answer: Any, file: Path) -> None:
    """Writes an answer to a file; raises `OSError` if it ends too early."""
    with open(file, "wb") as unfinished:
        copyfileobj(answer, unfinished)
    length = answer.headers.get("Content-Length")
    if length is not None and file.stat().st_size != int(length):
        raise OSError(f"{file.stat().st_size} bytes of {length}")
