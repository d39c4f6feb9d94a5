"""Local copies of folders and files in object storage, for what reads files: data sources and bundles.

A copy is in the user's cache. What must hold: after `local_copy` its files are those of the listing; an object whose
tag has changed is read again, one that is gone is removed.
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from lifecycle.core.files import user_cache, write_text
from lifecycle.core.published import AT_ONCE
from lifecycle.core.store import Store, Stored, StoreError, check_url

LISTING = "listing.json"  # beside the copies of an address: the tags of what was copied


@dataclass(frozen=True)
class Listed:
    """The objects at an address: those of a folder, or the one that the address itself names."""

    store: Store
    objects: Mapping[str, Stored]
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
    objects = {name: found for name, found in listed.objects.items() if wanted(name)}
    with _alone(_home(url)):
        _bring_up_to_date(listed.store, folder, _home(url) / LISTING, objects)
    return place


def _bring_up_to_date(store: Store, folder: Path, listing: Path, objects: Mapping[str, Stored]) -> None:
    tags = {name: found.tag for name, found in objects.items()}
    known: dict[str, str] = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    for gone in known.keys() - tags.keys():
        (folder / gone).unlink(missing_ok=True)
    new = [name for name, tag in tags.items() if known.get(name) != tag or not _has(folder / name, objects[name])]
    if not new and known.keys() == tags.keys():
        return
    write_text(listing, json.dumps({name: known[name] for name in tags.keys() & known.keys() - set(new)}))

    def one(name: str) -> None:
        store.download(name, folder / name)
        if not _has(folder / name, objects[name]):
            raise StoreError(f"{store.url}/{name}: changed while it was read; run again")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, new))
    write_text(listing, json.dumps(tags))


def _has(file: Path, found: Stored) -> bool:
    return file.is_file() and file.stat().st_size == found.bytes


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
