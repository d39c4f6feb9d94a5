"""Finished artifacts in a store: published whole, fetched whole or in part, and verified.

An artifact's objects have the names of its files, below the name of its folder. There is no rename in object storage,
so its manifest makes it whole: written after all files, removed before any of them is replaced. What must hold: a file
that was fetched has the SHA-256 of the manifest.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from shutil import rmtree

from pydantic import ValidationError

from lifecycle.core.artifact import (
    MANIFEST,
    Artifact,
    ArtifactError,
    FileFacts,
    Manifest,
    changed_files,
    open_artifact,
)
from lifecycle.core.file_hashes import FileHashes, file_hashes
from lifecycle.core.files import FILES, alone, write_text
from lifecycle.core.store import Missing, Store, StoredObject

FETCH_LOCK = ".fetching.lock"  # in a run's local folder
AT_ONCE = 8  # files that are on their way; each large one in parts


class PublishedArtifacts:
    """The artifacts of a run in a store. `require` is called before each write: it raises if the run is not ours."""

    def __init__(self, store: Store, require: Callable[[], None] = lambda: None) -> None:
        self.store, self.require = store, require

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of an artifact by its folder's name; None if it is not published."""
        address = f"{self.store.url}/{name}/{MANIFEST}"
        try:
            manifest = Manifest.model_validate_json(self.store.read(f"{name}/{MANIFEST}"))
        except Missing:
            return None
        except ValidationError as error:
            raise ArtifactError(f"{address}: not a manifest of this version: {error.errors()[0]['msg']}") from None
        require_inside(manifest.files, address)
        return manifest

    def publish(self, artifact: Artifact) -> None:
        """Writes what the store lacks of an artifact, removes what is not in it, and last writes its manifest."""
        there = self.store.below(artifact.path.name)
        held = there.list()
        self.require()
        there.delete([name for name in (MANIFEST,) if name in held])
        upload(there, artifact.path, _lacking(there, held, artifact), self.require)
        self.require()
        there.delete(held.keys() - artifact.manifest.files.keys() - {MANIFEST})
        there.upload(artifact.path / MANIFEST, MANIFEST)

    def fetch(self, artifact: Artifact, names: Collection[str]) -> None:
        """Brings files of an artifact that is published to its local folder, each verified; a killed fetch goes on.

        With all files the folder gets its manifest; one without is a copy of some. Other processes of this machine wait
        for the one that fetches.
        """
        with alone(artifact.path.with_name(FETCH_LOCK)):
            if not _is_here(artifact):
                self._fetch(artifact, names)

    def _fetch(self, artifact: Artifact, names: Collection[str]) -> None:
        folder, files = artifact.path, artifact.manifest.files
        (folder / MANIFEST).unlink(missing_ok=True)
        rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for foreign in held - files.keys():  # of another content with the same key, or of a killed fetch
            (folder / foreign).unlink()
        hashes = FileHashes(folder.parent)
        right = set(names) - set(lacking(artifact, names, hashes))
        fetch(self.store.below(folder.name), folder, {name: files[name] for name in names if name not in right})
        hashes.remember(folder, {name: files[name].sha256 for name in names})
        if files.keys() <= set(names):
            write_text(folder / MANIFEST, artifact.manifest.model_dump_json(indent=1))


def lacking(artifact: Artifact, names: Collection[str], hashes: FileHashes) -> list[str]:
    """The files with these names that are not here, or not right."""
    there = [name for name in names if _bytes(artifact.path / name) == artifact.manifest.files[name].bytes]
    changed = set(changed_files(artifact, hashes, there))
    return [name for name in names if name not in there or name in changed]


def _is_here(artifact: Artifact) -> bool:
    try:
        return open_artifact(artifact.path).manifest == artifact.manifest
    except ArtifactError:
        return False


def upload(store: Store, folder: Path, names: Iterable[str], require: Callable[[], None]) -> None:
    """Writes files of a folder under their relative names, several at once."""

    def one(name: str) -> None:
        require()
        store.upload(folder / name, name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, names))


def require_inside(files: Iterable[str], address: str) -> None:
    """Raises `ArtifactError` if a list of files, read at `address`, names one outside its folder."""
    if any(PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts for file in files):
        raise ArtifactError(f"{address}: names a file outside its folder")


def fetch(store: Store, folder: Path, files: Mapping[str, FileFacts]) -> None:
    """Reads objects into a folder, several at once; a file that is there already and right is not read again.

    Raises `ArtifactError`, naming it, for an object that is missing or is twice not what `files` says.
    """
    there = [name for name, facts in files.items() if _bytes(folder / name) == facts.bytes]
    right = {name for name, sha256 in file_hashes(folder, there).items() if sha256 == files[name].sha256}

    def one(name: str) -> None:
        try:
            found = store.download(name, folder / name)
            if found != files[name].sha256:  # an answer that was cut or garbled on its way: asked for once more
                found = store.download(name, folder / name)
        except Missing as error:
            raise ArtifactError(f"{error}, but the list of files has it; {_fix(store)}") from None
        if found != files[name].sha256:
            raise ArtifactError(
                f"{store.url}/{name}: {_bytes(folder / name)} bytes of SHA-256 {found[:12]}, the list of files says "
                f"{files[name].bytes} of {files[name].sha256[:12]}; {_fix(store)}"
            )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, (name for name in files if name not in right)))


def _fix(store: Store) -> str:
    return f"restore it, or delete {store.url} and run again: it is made again"


def _bytes(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _lacking(there: Store, held: Mapping[str, StoredObject], artifact: Artifact) -> list[str]:
    """The artifact's files that the store does not hold for certain: not those of a whole folder, such as a
    checkpoint, that was copied before with the same list of files."""
    same = tuple(
        name.removesuffix(FILES)
        for name in artifact.manifest.files
        if name.endswith(f"/{FILES}") and name in held and there.read(name) == (artifact.path / name).read_bytes()
    )
    return [
        name
        for name, facts in artifact.manifest.files.items()
        if not (name.startswith(same) and name in held and held[name].bytes == facts.bytes)
    ]
