"""Where a run's checkpoints are kept: in one folder that all processes see, or in a store (`stored.py`)."""

import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import orbax.checkpoint as ocp

from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.training.checkpoints.agreement import by_writer
from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import (
    TOGETHER,
    CheckpointError,
    aside,
    damage,
    rename_damaged,
    require_intact,
    steps_in,
    write_files,
)
from lifecycle.training.checkpoints.parts import prepare
from lifecycle.training.checkpoints.retention import delete_renamed, delete_steps, delete_unwanted, require_deleted
from lifecycle.training.checkpoints.weights import FROZEN

RUN_ID = "run_id"  # beside the checkpoints
UNFINISHED = ocp.path.atomicity_types.TMP_DIR_SUFFIX


class Home(Protocol):
    """What keeps a run's checkpoints. All processes of the job call each method alike, except where it says otherwise.
    A checkpoint's name is its step, or `frozen`."""

    @property
    def work(self) -> Path:
        """The folder into which Orbax writes on this process's disk."""
        ...

    def open(self, progress: Progress) -> None:
        """Finds what is there; names what is damaged, as far as it can be seen now."""
        ...

    def run_id(self) -> str:
        """The run's identity: a new one if none is kept here. It goes with the checkpoints."""
        ...

    def clean(self) -> None:
        """Deletes what failed saves and killed processes left, as far as that can be deleted now. Called in any thread,
        by one process alone too; raises no `OSError`."""
        ...

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending; the same in all processes."""
        ...

    def delete(self, steps: Iterable[int]) -> None:
        """Deletes the checkpoints of these steps."""
        ...

    def delete_frozen(self) -> None:
        """Deletes the frozen parameters."""
        ...

    def begin(self, name: str) -> None:
        """Before a save, in the thread that trains."""
        ...

    def make_folders(self, name: str, items: Sequence[str]) -> None:
        """Makes the folders that Orbax expects on this process's disk when it writes the arrays of these items, or
        without any those of the checkpoint itself. Called in the thread that saves, after Orbax has made its own in
        process 0."""
        ...

    def written(self, name: str) -> None:
        """This process has written its part; called in the thread that saves, before the others are told."""
        ...

    def joining(self, name: str) -> None:
        """All have written; called in process 0's thread, before it joins the parts."""
        ...

    def complete(self, name: str) -> None:
        """The checkpoint is complete except for its rename: makes it count; called in process 0's thread."""
        ...

    def saved(self, name: str, measured: Mapping[str, float]) -> None:
        """All processes know that it is complete; called in each one's thread: deletes what does not stay. An `OSError`
        or `ValueError` only says that something stayed, which the next call deletes."""
        ...

    def settled(self, name: str, measured: Mapping[str, float]) -> None:
        """As `saved`, from the thread that trains."""
        ...

    def folder(self, name: str | None, wanted: Mapping[str, Shapes]) -> Path:
        """The folder of a checkpoint, by default of the newest that can be read, intact, with all that this process
        reads of the arrays `wanted`, by item (`value_files`); raises `CheckpointError`, in all processes."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a checkpoint."""
        ...


def new_id() -> str:
    """An identity that no other run has."""
    return f"{secrets.randbits(31):08x}"


def is_id(text: str) -> bool:
    """Whether this is an identity; what else is in its place is as good as none."""
    return re.fullmatch("[0-7][0-9a-f]{7}", text) is not None


def _read_id(path: Path) -> str | None:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text if is_id(text) else None


class SharedFolder:
    """A folder that all processes of the job see. Orbax renames a complete checkpoint to its final name."""

    def __init__(self, folder: Path, settings: CheckpointConfig) -> None:
        self.work, self._settings = folder, settings

    def open(self, progress: Progress) -> None:
        """Renames damaged checkpoints newer than the newest intact one."""
        self.work.mkdir(parents=True, exist_ok=True)
        rename_damaged(self.work, progress)

    def run_id(self) -> str:
        """That in a file beside the checkpoints, as process 0 sees it."""
        path = self.work / RUN_ID
        kept = _read_id(path) if is_writer() else None
        run = f"{from_writer(int(kept or new_id(), 16)):08x}"
        if is_writer() and run != kept:
            write_text(path, run)
        return run

    def clean(self) -> None:
        """Deletes unfinished folders."""
        if is_writer():
            for path in self.work.glob(f"*{UNFINISHED}*"):
                # Orbax's other writes of a failed save may still add files, which are deleted the next time
                shutil.rmtree(path, ignore_errors=True)
            delete_renamed(self.work)

    def steps(self) -> list[int]:
        """Those with their final name."""
        return steps_in(self.work)

    def delete(self, steps: Iterable[int]) -> None:
        """Deletes them, each in one rename."""
        by_writer(lambda: delete_steps(self.work, steps))

    def delete_frozen(self) -> None:
        """Deletes them, also incomplete ones of a killed run; damaged ones are set aside."""
        by_writer(self._delete_frozen)

    def _delete_frozen(self) -> None:
        if (before := self.work / FROZEN).is_dir():
            if damage(before) is None:
                shutil.rmtree(before)
            else:
                before.rename(aside(self.work, FROZEN))

    def begin(self, name: str) -> None:
        """Nothing to do."""

    def make_folders(self, name: str, items: Sequence[str]) -> None:
        """Makes those in process 0 for which Orbax waits in the others."""
        if is_writer():
            prepare(self.work / f"{name}{UNFINISHED}", items, UNFINISHED)

    def written(self, name: str) -> None:
        """Nothing to do."""

    def joining(self, name: str) -> None:
        """Nothing to do."""

    def complete(self, name: str) -> None:
        """Adds the list of files."""
        (path,) = self.work.glob(f"{name}{UNFINISHED}*")
        write_files(path)

    def saved(self, name: str, measured: Mapping[str, float]) -> None:
        """Deletes the checkpoints that do not stay."""
        if is_writer():
            delete_unwanted(self.work, self._settings)
            require_deleted(self.work)

    def settled(self, name: str, measured: Mapping[str, float]) -> None:
        """Nothing to do."""

    def folder(self, name: str | None, wanted: Mapping[str, Shapes]) -> Path:
        """Its folder, of which each process hashes a part."""
        path = self.work / (self._newest() if name is None else name)
        require_intact(path, TOGETHER)
        return path

    def _newest(self) -> str:
        """The newest that process 0 sees; other hosts may not see yet what was renamed. `open` has renamed those that
        are damaged."""
        newest: int = max(self.steps(), default=-1)
        found = from_writer(newest)
        if found < 0:
            raise CheckpointError(f"{self.work}: no checkpoint here")
        return str(found)

    def has(self, name: str) -> bool:
        """Whether its folder is there."""
        return (self.work / name).is_dir()
