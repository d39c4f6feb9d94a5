"""Local copies of folders and files in object storage, for what reads files: data sources, rows, tokenizers and models;
those of the web are in `web.py`.

A copy is in the user's cache. What must hold: after `local_copy` its wanted files are those of the listing, or what
took an object's place while it was read, as a log that grows; an object whose tag has changed is read again, one that
is gone is removed. One that is not wanted stays: another source at the same address may want it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from lifecycle.core.files import alone, user_cache, write_text
from lifecycle.core.published import AT_ONCE
from lifecycle.core.store import Store, StoredObject, StoreError, check_url, is_url, path_or_url
from lifecycle.core.web import web_file
from lifecycle.core.web_address import WebAddress, is_on_web, shown

LISTING = "listing.json"  # beside the copies of an address: the tags of what was copied


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


def place_here(place: str) -> Path:
    """A path as it is; of an address where its copy is."""
    return copy_of(place) if is_url(place) else Path(place)


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


def is_stored(place: str) -> bool:
    """Whether a place is an address in object storage, where a folder can be listed."""
    return is_url(place) and not is_on_web(place)


def checked_place(place: str) -> str:
    """A path or an address, also on the web; raises `ConfigError` for an address of another kind."""
    if is_on_web(place):
        WebAddress.of(place)
        return place
    return path_or_url(place, also="https://")


def file_place(place: str) -> str:
    """The path or address in a setting, as it is compared; raises `ConfigError` for what is neither."""
    return checked_place(place) if is_url(place) else str(Path(place))


# Of a file, or of a folder whose files have their usual names; in records as it is shown.
type Place = Annotated[
    str, BeforeValidator(str), AfterValidator(file_place), PlainSerializer(shown, when_used="json-unless-none")
]


def local_file(place: str) -> Path:
    """A file that a setting names, on this machine: its path, or the copy of its address; raises `StoreError`."""
    if is_on_web(place):
        return web_file(place)
    return local_copy(place) if is_url(place) else Path(place)


def copied_tags(url: str) -> dict[str, str]:
    """What names the versions of the files that were copied from an address: by name, the tag that the store gave."""
    return _tags(_home(url) / LISTING)


def _tags(listing: Path) -> dict[str, str]:
    return json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}


def _bring_up_to_date(listed: Listed, names: Iterable[str], folder: Path, listing: Path) -> None:
    store, objects = listed.store, listed.objects
    known = _tags(listing)
    for gone in known.keys() - objects.keys():
        (folder / gone).unlink(missing_ok=True)
    new = [name for name in names if known.get(name) != objects[name].tag or not _has(folder / name, objects[name])]
    kept = {name: tag for name, tag in known.items() if name in objects and name not in new}
    if kept == known and not new:
        return
    write_text(listing, json.dumps(kept))

    def one(name: str) -> str:
        store.download(name, folder / name)
        found = objects[name] if _has(folder / name, objects[name]) else store.head(name)
        if found is None or not _has(folder / name, found):
            raise StoreError(f"{store.url}/{name}: changed while it was read; run again")
        return found.tag

    with ThreadPoolExecutor(AT_ONCE) as pool:
        tags = dict(zip(new, pool.map(one, new), strict=True))
    write_text(listing, json.dumps(kept | tags))


def _has(file: Path, found: StoredObject) -> bool:
    return file.is_file() and file.stat().st_size == found.bytes
