"""Local copies of folders and files in object storage, for what reads files: data sources, rows and bundles; and of
single files on the web.

A copy is in the user's cache. What must hold: after `local_copy` its wanted files are those of the listing; an object
whose tag has changed is read again, one that is gone is removed. One that is not wanted stays: another source at the
same address may want it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from lifecycle.core.published import AT_ONCE
from lifecycle.core.store import Store, StoredObject, StoreError, check_url, is_url

LISTING = "listing.json"  # beside the copies of an address: the tags of what was copied
WEB = ("https://", "http://")
ANSWER_S = 60.0  # without a byte
PUNCTUATION = "%/:?#[]@!$&'()*+,;="  # of an address (RFC 3986); all else in it is text, to be escaped


@dataclass(frozen=True)
class Listed:
    """The objects at an address: those of a folder, or the one that the address itself names."""

    store: Store
    objects: Mapping[str, StoredObject]
    is_file: bool


def objects_at(url: str) -> Listed:
    """The objects at an address; raises `StoreError` if there are none."""
    store = Store(url)
    if objects := store.list():
        return Listed(store, {name: found for name, found in objects.items() if not name.endswith("/")}, False)
    parent, _, name = store.url.rpartition("/")
    found = Store(parent).head(name) if parent.count("/") > 1 else None
    if found is None:
        raise StoreError(f"{url}: nothing is there; correct the address")
    return Listed(Store(parent), {name: found}, True)


def copy_of(url: str) -> Path:
    """Where the local copy of an address is, once `local_copy` has made it."""
    return _home(url) / "files" / PurePosixPath(check_url(url)).name


def _home(url: str) -> Path:
    return user_cache() / "fetched" / sha256(check_url(url).encode()).hexdigest()[:16]


def local_copy(url: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Copies what is at an address, or of a folder the objects wanted by name, and returns the folder or the file.

    Raises `StoreError`. Other processes of this machine wait for the one that copies.
    """
    listed, place = objects_at(url), copy_of(url)
    folder = place.parent if listed.is_file else place
    names = [name for name in listed.objects if wanted(name)]
    with alone(_home(url) / ".lock"):
        _bring_up_to_date(listed, names, folder, _home(url) / LISTING)
    return place


def file_place(place: str) -> str:
    """The path or address of a file in a setting, as it is compared; raises `ConfigError` for what is neither."""
    if place.startswith(WEB):
        return place
    return check_url(place) if is_url(place) else str(Path(place))


def local_file(place: str) -> Path:
    """A file that a setting names, on this machine: its path, or the copy of its address; raises `StoreError`."""
    if place.startswith(WEB):
        return _from_web(place)
    return local_copy(place) if is_url(place) else Path(place)


def _from_web(url: str) -> Path:
    """Copies a file from the web, unless the server says that it is the one that was copied."""
    home = user_cache() / "fetched" / sha256(url.encode()).hexdigest()[:16]
    file, tag = home / "files" / (PurePosixPath(urlsplit(url).path).name or "file"), home / LISTING
    with alone(home / ".lock"):
        known = tag.read_text(encoding="utf-8") if tag.is_file() and file.is_file() else ""
        asked = Request(quote(url, safe=PUNCTUATION), headers={"If-None-Match": known} if known else {})
        try:
            with urlopen(asked, timeout=ANSWER_S) as answer:
                _receive(answer, file)
                write_text(tag, answer.headers.get("ETag") or "")
        except HTTPError as error:
            if error.code != HTTPStatus.NOT_MODIFIED:
                raise StoreError(f"{url}: {error.code} {error.reason}; correct the address") from None
        except (OSError, HTTPException) as error:
            raise StoreError(
                f"{url}: no answer that can be used ({error}); check the network and the address"
            ) from None
    return file


def _receive(answer: Any, file: Path) -> None:
    """Writes an answer to a file, under a temporary name until it is whole; raises `OSError` if it ends too early."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary(file), "wb") as unfinished:
        copyfileobj(answer, unfinished)
    length = answer.headers.get("Content-Length")
    if length is not None and temporary(file).stat().st_size != int(length):
        raise OSError(f"{temporary(file).stat().st_size} bytes of {length}")
    temporary(file).replace(file)


def _bring_up_to_date(listed: Listed, names: Iterable[str], folder: Path, listing: Path) -> None:
    store, objects = listed.store, listed.objects
    known: dict[str, str] = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    for gone in known.keys() - objects.keys():
        (folder / gone).unlink(missing_ok=True)
    new = {
        name: objects[name].tag
        for name in names
        if known.get(name) != objects[name].tag or not _has(folder / name, objects[name])
    }
    kept = {name: tag for name, tag in known.items() if name in objects and name not in new}
    if kept == known and not new:
        return
    write_text(listing, json.dumps(kept))

    def one(name: str) -> None:
        store.download(name, folder / name)
        if not _has(folder / name, objects[name]):
            raise StoreError(f"{store.url}/{name}: changed while it was read; run again")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, new))
    write_text(listing, json.dumps(kept | new))


def _has(file: Path, found: StoredObject) -> bool:
    return file.is_file() and file.stat().st_size == found.bytes
