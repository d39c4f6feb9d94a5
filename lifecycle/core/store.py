"""Object storage: the folders of `s3://` and `gs://` addresses, read and written object by object.

One small interface over obstore, which speaks both protocols itself, with retries, uploads in parts and conditional
writes. What must hold: an object is there whole or not at all; `create` and `replace` are decided by the store, so
that of two writers one wins; and an error is a `StoreError` of one line that names the address.

Orbax cannot save to S3 (it would need renames), and fsspec has no write on condition that an object is unchanged, which
taking over a lease needs. So work happens in a local folder, and finished files are copied (`core/published.py`).
"""

import hashlib
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary, user_cache
from lifecycle.core.web_address import bare

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

SCHEMES = {"s3": "s3:// (Amazon S3 and what speaks its protocol)", "gs": "gs:// (Google Cloud Storage)"}
LOGIN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the machine's role), AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or the machine's service account",
}
PART_BYTES = 16 << 20
MAX_PARTS = 9_000  # of an upload; S3 allows 10,000
RETRY_S = 180.0


class StoreError(ValueError):
    """Object storage cannot be reached, refuses, or lacks an object; the message names the address and the fix."""


class Missing(StoreError):
    """There is no such object."""


class Changed(StoreError):
    """A conditional write was refused: the object is there already, or is another one by now."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it. `tag` changes with the content; `modified` is by the store's own clock."""

    bytes: int
    tag: str
    modified: datetime
    version: "UpdateVersion"


def is_url(place: str) -> bool:
    """Whether a place is an address such as `s3://bucket/folder` rather than a path."""
    return "://" in place


def check_url(url: str, also: str = "") -> str:
    """The address without a slash at its end; raises `ConfigError` for one that no store of ours has. `also`: other
    addresses that the caller takes, for the message."""
    scheme, _, rest = url.partition("://")
    bucket, _, folder = rest.rstrip("/").partition("/")
    said = bare(url)
    if scheme not in SCHEMES:
        kinds = [*SCHEMES.values(), *filter(None, [also])]
        raise ConfigError(f"{said}: no storage of this kind; use {' or '.join(kinds)}, or a path")
    if not bucket:
        raise ConfigError(f"{said}: no bucket; write it as {scheme}://BUCKET/FOLDER")
    has_gap = bool(folder) and any(part in ("", ".", "..") for part in folder.split("/"))
    if has_gap or "@" in bucket or re.search(r"[?#\\\x00-\x1f]", rest):
        raise ConfigError(f"{said}: not an address of a folder; write it as {scheme}://BUCKET/FOLDER")
    return f"{scheme}://{bucket}/{folder}".rstrip("/")


def path_or_url(place: str, also: str = "") -> str:
    """The place as it is, if it is a path; of an address, what `check_url` makes of it."""
    return check_url(place, also) if is_url(place) else place


def local_folder(url: str, use: str) -> Path:
    """The folder in the user's cache where this machine keeps the files of an address, for one use of them."""
    return user_cache() / use / check_url(url).replace("://", "/")


class Store:
    """The objects below an address. A request that fails is repeated for `retry_s`; `objects` replaces the connection,
    for tests."""

    def __init__(self, url: str, objects: "ObjectStore | None" = None, retry_s: float = RETRY_S) -> None:
        self.url = url if objects is not None else check_url(url)
        scheme, _, rest = self.url.partition("://")
        bucket, _, folder = rest.partition("/")
        self._prefix = f"{folder}/" if folder else ""
        self._scheme, self._bucket = scheme, bucket
        self._objects = _connect(scheme, bucket, retry_s) if objects is None else objects

    def below(self, name: str) -> Self:
        """The store of a folder in this one, over the same connection."""
        return type(self)(f"{self.url}/{name}", self._objects)

    def read(self, name: str) -> bytes:
        """An object's content; raises `Missing`."""
        import obstore

        with self._named(name):
            return bytes(obstore.get(self._objects, self._prefix + name).bytes())

    def read_tagged(self, name: str) -> tuple[bytes, StoredObject]:
        """An object's content, and what it is replaced by: of one moment, not of two."""
        import obstore

        with self._named(name):
            answer = obstore.get(self._objects, self._prefix + name)
            return bytes(answer.bytes()), _stored(answer.meta)

    def head(self, name: str) -> StoredObject | None:
        """What a listing would show of an object; None if it is missing."""
        import obstore

        try:
            with self._named(name):
                return _stored(obstore.head(self._objects, self._prefix + name))
        except Missing:
            return None

    def list(self, folder: str = "") -> dict[str, StoredObject]:
        """All objects below a folder, by their names in this store, sorted."""
        import obstore

        prefix = f"{self._prefix}{folder}".rstrip("/")
        with self._named(folder):
            found = [entry for page in obstore.list(self._objects, prefix, chunk_size=1000) for entry in page]
        return {entry["path"].removeprefix(self._prefix): _stored(entry) for entry in _sorted(found)}

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, replacing another."""
        self._put(name, content, None)

    def create(self, name: str, content: bytes) -> "UpdateVersion":
        """Writes an object that must not be there yet; raises `Changed` if it is."""
        return self._put(name, content, "create")

    def replace(self, name: str, content: bytes, version: "UpdateVersion") -> "UpdateVersion":
        """Writes an object that must still be the one with this version; raises `Changed` if it is not."""
        return self._put(name, content, version)

    def upload(self, file: Path, name: str) -> None:
        """Writes a file's content, in parts if it is large; the object appears when all parts are there."""
        import obstore

        part = max(PART_BYTES, file.stat().st_size // MAX_PARTS + 1)
        with self._named(name):
            obstore.put(self._objects, self._prefix + name, file, chunk_size=part)

    def download(self, name: str, file: Path) -> str:
        """Writes an object's content to a file, under a temporary name until it is whole; returns its SHA-256."""
        import obstore

        file.parent.mkdir(parents=True, exist_ok=True)
        total = hashlib.sha256()
        with self._named(name):
            chunks = obstore.get(self._objects, self._prefix + name).stream(min_chunk_size=PART_BYTES)
            with open(temporary(file), "wb") as unfinished:
                for chunk in chunks:
                    unfinished.write(chunk)
                    total.update(chunk)
        temporary(file).replace(file)
        return total.hexdigest()

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects; one that is missing is no error."""
        import obstore

        for name in names:
            try:
                with self._named(name):
                    obstore.delete(self._objects, self._prefix + name)
            except Missing:
                continue

    def _put(self, name: str, content: bytes, mode: Any) -> "UpdateVersion":
        import obstore

        with self._named(name):
            result = obstore.put(self._objects, self._prefix + name, content, mode=mode or "overwrite")
            return _version(result)

    @contextmanager
    def _named(self, name: str) -> Generator[None]:
        """Raises what the library raises as `StoreError` with the object's address."""
        from obstore import exceptions

        at = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            if error.errno is not None:  # of a local file
                raise
            self._require_bucket(error)
            raise Missing(f"{at}: no such object") from None
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise Changed(f"{at}: another process has written it") from None
        except (exceptions.UnauthenticatedError, exceptions.PermissionDeniedError) as error:
            raise StoreError(
                f"{at}: access is refused{_reason(error)}; set {LOGIN.get(self._scheme, self._scheme)}"
            ) from None
        except exceptions.BaseError as error:
            self._require_bucket(error)
            raise StoreError(
                f"{at}: no answer that can be used{_reason(error) or _first_line(error)}; check the network, the "
                f"bucket's region, and {LOGIN.get(self._scheme, self._scheme)}"
            ) from None

    def _require_bucket(self, error: Exception) -> None:
        if "NoSuchBucket" in str(error):
            raise StoreError(f"{self._scheme}://{self._bucket}: no such bucket; make it, or correct its name") from None


def _connect(scheme: str, bucket: str, retry_s: float) -> "ObjectStore":
    try:
        from obstore.store import from_url
    except ModuleNotFoundError:
        raise ConfigError(f"{scheme}://{bucket}: needs the extra `store`: uv sync --extra store") from None
    return from_url(f"{scheme}://{bucket}", retry_config={"retry_timeout": timedelta(seconds=retry_s)})


def _sorted(found: list[Any]) -> list[Any]:
    return sorted(found, key=lambda entry: entry["path"])


def _stored(meta: Any) -> StoredObject:
    tag = f"{meta['e_tag'] or meta['version']}"
    return StoredObject(meta["size"], tag, meta["last_modified"], _version(meta))


def _version(answer: Any) -> "UpdateVersion":
    """What identifies an object's content: S3 has an ETag, Google a generation too."""
    given: UpdateVersion = {}
    if answer["e_tag"] is not None:
        given["e_tag"] = answer["e_tag"]
    if answer["version"] is not None:
        given["version"] = answer["version"]
    return given


def _reason(error: Exception) -> str:
    """What the server said, from the XML in the library's long message; empty if it said nothing."""
    said = re.search(r"<Message>(.*?)</Message>", str(error), re.DOTALL)
    return f" ({said[1].strip()})" if said else ""


def _first_line(error: Exception) -> str:
    return f" ({str(error).strip().splitlines()[0].strip()})"
