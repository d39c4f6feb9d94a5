"""The artifact chain: every stage reads artifacts and writes one, with a manifest.

An artifact is a folder `<root>/<stage>-<key[:12]>/` whose `manifest.json` is written last. Its *key* is the hash of
(stage, config, content hashes of its inputs): the request. Its *content hash* is that of the result. While a stage
runs, the folder's name ends in `.partial`; it is renamed at the end, so a reader never sees half an artifact, and a
killed stage can resume from its own files.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lifecycle.core.config import digest
from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.file_hashes import FileHashes, combined, file_hashes, hash_files
from lifecycle.core.files import temporary, user_cache, write_text
from lifecycle.core.periodic import repeated
from lifecycle.core.version import VERSION

MANIFEST = "manifest.json"
READ_FROM = "read_from"  # in a stage's stats: the user's files that it read, by path or address; keys have the content
LEDGER = ".cost.json"  # the cost of the stage's killed runs so far
LEDGER_EVERY_S = 5.0


class ArtifactError(ValueError):
    """An artifact is missing, incomplete or damaged."""


class FileFacts(BaseModel):
    """A file of an artifact, as it was when the artifact was finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """An artifact's description: what it was made from, when and at what cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    content_hash: str
    config: dict[str, Any]
    inputs: dict[str, str]  # input -> its folder's name in the same root; for an outside folder, its path
    input_hashes: dict[str, str]
    files: dict[str, FileFacts]  # by relative path
    stats: dict[str, Any]
    code: str
    # How it was computed, which does not affect its content: a record for each session.
    how: list[dict[str, Any]] = []
    created: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    path: Path
    manifest: Manifest

    @property
    def stats(self) -> dict[str, Any]:
        """The stats that the stage reported, from the manifest."""
        return self.manifest.stats

    @property
    def content_hash(self) -> str:
        """The hash of the artifact's content, from the manifest."""
        return self.manifest.content_hash


def artifact_key(stage: str, config: Mapping[str, Any], input_hashes: Mapping[str, str]) -> str:
    """The key of the artifact that `stage` makes with this config from these inputs."""
    return digest({"stage": stage, "config": config, "inputs": dict(input_hashes)})


def artifact_path(root: Path, stage: str, key: str) -> Path:
    """The folder of the artifact that a stage makes under this key."""
    return root / f"{stage}-{key[:12]}"


def open_artifact(path: Path) -> Artifact:
    """Reads a finished artifact; raises `ArtifactError` if it is missing or a file's size is not the manifest's.

    `require_intact` checks the contents.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactError(f"{path}: no finished artifact here (no {MANIFEST}); run the stage that makes it")
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ArtifactError(f"{manifest_path}: not a manifest of this version: {error.errors()[0]['msg']}") from None
    for name, facts in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts.bytes:
            held = file.stat().st_size if file.is_file() else "no"
            raise ArtifactError(
                f"{file}: {held} bytes, the manifest says {facts.bytes}; delete {path} and rerun its stage"
            )
    return Artifact(path, manifest)


def changed_files(
    artifact: Artifact, hashes: FileHashes | None = None, names: Collection[str] | None = None
) -> list[str]:
    """The files, of all or of those with these `names`, whose content is not the manifest's. `hashes` remembers those
    of unchanged files; without it they are read."""
    files = artifact.manifest.files
    asked = files if names is None else names
    found = file_hashes(artifact.path, asked) if hashes is None else hashes.of(artifact.path, asked)
    return [name for name in asked if found[name] != files[name].sha256]


def require_intact(artifact: Artifact, hashes: FileHashes | None = None) -> None:
    """Raises `ArtifactError` naming the files whose content changed after the artifact was finished."""
    if changed := ", ".join(changed_files(artifact, hashes)):
        raise ArtifactError(
            f"{artifact.path}: {changed} changed after it was finished; restore it, or make the folder again: by its "
            "stage, or by lifecycle import"
        )


@dataclass
class Draft:
    """An artifact being made: a stage writes into `path`, then `commit` renames it.

    `folders`: further inputs by name, folders that no stage of this root made, with or without a manifest.
    """

    root: Path
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    folders: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.input_hashes = {name: artifact.content_hash for name, artifact in self.inputs.items()}
        self.input_hashes |= {name: content_hash(folder) for name, folder in self.folders.items()}
        self.key = artifact_key(self.stage, self.config, self.input_hashes)
        self.final_path = artifact_path(self.root, self.stage, self.key)
        self.path = self.final_path.with_name(self.final_path.name + ".partial")
        self._started = (time.monotonic(), cpu_seconds())
        self._before = (0.0, 0.0)

    def open(self) -> Path:
        """The folder to write into, with the files that a killed run of the same stage left."""
        self.path.mkdir(parents=True, exist_ok=True)
        ledger = self.path / LEDGER
        if ledger.is_file():
            self._before = _read_ledger(ledger)
        self._started = (time.monotonic(), cpu_seconds())
        return self.path

    def commit(
        self, stats: Mapping[str, Any], content_hash: str | None = None, how: Sequence[Mapping[str, Any]] = ()
    ) -> Artifact:
        """Writes the manifest and renames the folder; `content_hash` replaces the hash over the files."""
        wall, cpu = self._spent()
        for name in (LEDGER, MANIFEST):  # and temporary files of a killed write
            for leftover in (self.path / name, temporary(self.path / name)):
                leftover.unlink(missing_ok=True)
        files = [str(path.relative_to(self.path)) for path in sorted(self.path.rglob("*")) if path.is_file()]
        hashes = file_hashes(self.path, files)
        manifest = Manifest(
            stage=self.stage, key=self.key, content_hash=content_hash or combined(hashes), config=dict(self.config),
            inputs=self._inputs(), input_hashes=self.input_hashes, files=file_facts(self.path, hashes),
            stats=dict(stats), code=code_version(), how=[dict(session) for session in how],
            created=datetime.now(UTC).isoformat(timespec="seconds"), wall_s=wall, cpu_s=cpu,
        )  # fmt: skip
        write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        if self.final_path.exists():  # a damaged artifact of the same key is replaced
            shutil.rmtree(self.final_path)
        self.path.rename(self.final_path)
        FileHashes(self.root).remember(self.final_path, hashes)
        return Artifact(self.final_path, manifest)

    def _inputs(self) -> dict[str, str]:
        inside = {name: artifact.path.name for name, artifact in self.inputs.items()}
        return inside | {name: str(folder.absolute()) for name, folder in self.folders.items()}

    @contextmanager
    def keeping_costs(self) -> Generator[None]:
        """Records the stage's cost in the draft's ledger every few seconds, so that a killed run's cost is not lost."""

        def keep() -> None:
            wall, cpu = self._spent()
            with suppress(OSError):  # the stage reports a full disk; a lost entry costs a few seconds' record
                write_text(self.path / LEDGER, json.dumps({"wall_s": wall, "cpu_s": cpu}))

        with repeated(keep, LEDGER_EVERY_S, "cost ledger"):
            yield

    def _spent(self) -> tuple[float, float]:
        """Wall and CPU seconds of this run and of earlier killed ones."""
        wall, cpu = self._before
        return wall + (time.monotonic() - self._started[0]), cpu + (cpu_seconds() - self._started[1])


def reopen(artifact: Artifact, damaged: Sequence[str]) -> None:
    """Turns a finished artifact into the draft that it was, without these files and without a manifest."""
    draft = artifact.path.with_name(artifact.path.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    artifact.path.rename(draft)
    for name in damaged:
        (draft / name).unlink()
    (draft / MANIFEST).unlink(missing_ok=True)  # a copy of some of its files has none


def file_facts(folder: Path, hashes: Mapping[str, str]) -> dict[str, FileFacts]:
    """The files of a folder for its manifest, from the hash of each by its relative name."""
    return {name: FileFacts(bytes=(folder / name).stat().st_size, sha256=sha256) for name, sha256 in hashes.items()}


def content_hash(folder: Path) -> str:
    """The content hash of an artifact's folder; without a manifest, the hash over its files."""
    if (folder / MANIFEST).is_file():
        return open_artifact(folder).content_hash
    return hash_files(folder, [path.name for path in folder.iterdir() if path.is_file()])


def intact_hash(folder: Path) -> str:
    """`content_hash` of a folder to be used now; raises `ArtifactError` if its files are not those of its manifest, or
    if there are others besides. Hashes are remembered in the user's cache."""
    if not (folder / MANIFEST).is_file():
        return content_hash(folder)
    artifact = open_artifact(folder.absolute())
    require_intact(artifact, FileHashes(Path(artifact.path.anchor), user_cache() / "hashes.json"))
    known = {MANIFEST, *artifact.manifest.files}
    if added := sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in known):
        raise ArtifactError(
            f"{folder}: {', '.join(added)} is not in its manifest, so its version would not tell; remove it"
        )
    return artifact.content_hash


def _read_ledger(path: Path) -> tuple[float, float]:
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        return float(costs["wall_s"]), float(costs["cpu_s"])
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{path}: damaged; delete it: only the cost of the stage's killed runs is lost") from None


@cache
def code_version() -> str:
    """`version+commit` of the running code, with `.dirty` if the checkout has changes."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=12"]
    try:
        described = subprocess.run(git, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return VERSION
    commit = described.stdout.strip() if described.returncode == 0 else ""
    return f"{VERSION}+{commit}" if commit else VERSION
