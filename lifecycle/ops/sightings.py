"""Sightings: which models were made with a document, from the run's artifacts that are still there.

An artifact saw a document if the chain of its inputs reaches documents that have it. A stage may have ended before its
turn came, so this says what may be in a model, and never too little of what is known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.artifact import MANIFEST, Artifact, open_artifact
from lifecycle.data.config import AGAINST
from lifecycle.data.inspecting.fate import Fate, find_documents
from lifecycle.ops.registry import Registry, Version


@dataclass(frozen=True)
class Sighting:
    """A document as an artifact of stage `documents` has it, and what was made of that artifact.

    `split` is `kept` for a document to train on, `heldout` for one to measure on.
    """

    document: str  # id
    name: str  # source:path
    split: str
    documents: Path
    made: tuple[Artifact, ...]
    versions: tuple[Version, ...]


def sightings(root: Path, registry: Registry | None, name: str) -> list[Sighting]:
    """The sightings of the documents with this id, a beginning of it, path or `source:path`; removed ones are none."""
    artifacts = _artifacts(root)
    versions = [] if registry is None else registry.versions()
    return [
        _sighting(fate, artifact, artifacts, versions)
        for path, artifact in artifacts.items()
        if any(path.glob("kept-*.parquet"))
        for fate in find_documents(path, name)
        if fate.split != "removed"
    ]


def made_with(
    root: Path, registry: Registry | None, documents: Artifact
) -> tuple[tuple[Artifact, ...], tuple[Version, ...]]:
    """What was made of an artifact of stage `documents`, and which versions are among it."""
    return _made(documents, _artifacts(root), [] if registry is None else registry.versions())


def _artifacts(root: Path) -> dict[Path, Artifact]:
    found = sorted(root.iterdir()) if root.is_dir() else []  # a run that has not begun has no folder
    return {path: open_artifact(path) for path in found if (path / MANIFEST).is_file()}


def _sighting(fate: Fate, seen: Artifact, artifacts: Mapping[Path, Artifact], versions: list[Version]) -> Sighting:
    name = f"{fate.row['source']}:{fate.row['path']}"
    return Sighting(fate.row["id"], name, fate.split, seen.path, *_made(seen, artifacts, versions))


def _made(
    seen: Artifact, artifacts: Mapping[Path, Artifact], versions: list[Version]
) -> tuple[tuple[Artifact, ...], tuple[Version, ...]]:
    made = tuple(_made_of(seen, artifacts))
    hashes = {artifact.content_hash for artifact in made}
    return made, tuple(version for version in versions if version.hash in hashes)


def _made_of(seen: Artifact, artifacts: Mapping[Path, Artifact]) -> Iterator[Artifact]:
    """The artifacts whose inputs lead to one, the nearest first; an input that was made again since leads nowhere."""
    reached, waiting = {seen.path}, [seen]
    while waiting:
        source = waiting.pop(0)
        for path, artifact in artifacts.items():
            hashes = artifact.manifest.input_hashes
            folders = artifact.manifest.inputs
            uses = any(
                path.parent / folder == source.path and hashes[name] == source.content_hash
                for name, folder in folders.items()
                if not name.startswith(AGAINST)  # what is compared with does not go into what is made
            )
            if uses and path not in reached:
                reached.add(path)
                waiting.append(artifact)
                yield artifact
