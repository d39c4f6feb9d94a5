"""A run's folder, opened for reading: its artifacts by name, and their logs.

It changes nothing and needs no config: an artifact's manifest describes it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import MANIFEST, Artifact, ArtifactError, open_artifact
from lifecycle.core.runlog import METRICS, read_log


class Run(Mapping[str, Artifact]):
    """The newest artifact of each stage in a folder. Looking up a damaged one raises `ArtifactError`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifests = sorted(self.folder.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime_ns)
        if not manifests:
            raise ArtifactError(
                f"{self.folder}: no finished artifact here; give a run's folder, for example runs/quickstart"
            )
        self._folders = {path.parent.name.rpartition("-")[0]: path.parent for path in manifests}

    def __getitem__(self, stage: str) -> Artifact:
        return open_artifact(self._folders[stage])

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def log(self, stage: str) -> list[dict[str, Any]]:
        """The records of a training stage's log, in order: `step` and the metrics."""
        return list(read_log(self[stage].path / METRICS))


def open_run(folder: str | Path) -> Run:
    """Opens a run's folder, for example `runs/quickstart`. Raises `ArtifactError` if no artifact is there."""
    return Run(folder)
