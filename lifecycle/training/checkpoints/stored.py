"""Checkpoints of a job whose hosts share no folder: kept in a store, to which each process uploads its own part.

Orbax writes to each process's own disk. Before the processes meet, each has uploaded the values of its part. Process 0
then fetches the trees of the others' parts, joins them (`parts.py`), uploads them with the logs, and last writes
`files.json`. What must hold: as on one disk, a checkpoint that counts is bit for bit what was saved, and a save that
fails in one process is an error in all. A process of a job that has lost its run may upload for a while: what it writes
has a name that no other save uses, so it changes no checkpoint, and is removed by the next save.

To be read, each host fetches what its processes read of a checkpoint, every file verified (`copies.py`).
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.artifact import ArtifactError
from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.file_hashes import file_hashes
from lifecycle.core.files import FILES
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.published import AT_ONCE
from lifecycle.core.store import Missing, Store, StoredObject
from lifecycle.training.checkpoints.agreement import by_writer, from_first, together
from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.copies import Copies
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.checkpoints.home import RUN_ID, UNFINISHED, is_id, new_id
from lifecycle.training.checkpoints.integrity import CheckpointError, damage, steps_in, write_files
from lifecycle.training.checkpoints.mirror import bring_logs, fetch_checkpoint, send_logs
from lifecycle.training.checkpoints.parts import final_name, is_value, parts_in, prepare, split
from lifecycle.training.checkpoints.retention import MEASURED, META, delete_steps, kept_steps
from lifecycle.training.checkpoints.weights import FROZEN

SCRATCH = "parts"  # in the store: what processes hand to process 0 in a save
STAGING = "staging"  # in the local folder: one folder for each process
COPIES = "copies"  # beside these
DAMAGED = "files.damaged.json"  # what the list of files of a damaged checkpoint is renamed to


class InStore:
    """A run's checkpoints in a store, for processes with folders of their own, `local`."""

    def __init__(self, to: Destination, local: Path, settings: CheckpointConfig) -> None:
        self._stage, self._store, self._require = to.store, to.store.below(local.name), to.require
        self._local, self._settings = local, settings
        self._progress: Progress = Silent()
        self.work = local / STAGING / str(jax.process_index())
        self._copies = Copies(self._store, local / STAGING / COPIES)
        self._measured: dict[int, dict[str, float]] = {}  # at each step that counts, the same in all processes
        self._has_frozen, self._save = False, ""
        self._others: dict[str, tuple[int, str]] = {}  # of the current save, in process 0: the others' values

    def open(self, progress: Progress) -> None:
        """Asks the store, in process 0, for the whole checkpoints and the logs."""
        self._progress = progress
        self._local.mkdir(parents=True, exist_ok=True)
        found = by_writer(self._found)
        self._measured = {int(step): measured for step, measured in found["steps"]}
        self._has_frozen = found["frozen"]

    def _found(self) -> dict[str, Any]:
        whole = _whole(self._store.list())
        steps = sorted(int(name) for name in whole if name.isdecimal())
        if steps:
            bring_logs(self._stage, self._local.parent)
        stale = [step for step in steps_in(self._local) if not self._is_here(str(step))]
        delete_steps(self._local, [step for step in stale if damage(self._local / str(step)) is None])
        return {"steps": [[step, self._measured_at(step)] for step in steps], "frozen": FROZEN in whole}

    def _measured_at(self, step: int) -> dict[str, float]:
        if self._settings.best is None:
            return {}
        try:
            return json.loads(self._store.read(f"{step}/{META}/metadata")).get(MEASURED, {})
        except (Missing, json.JSONDecodeError, UnicodeDecodeError):  # damaged: named when it is to be used
            return {}

    def run_id(self) -> str:
        """That in the store: the disk of process 0 may be another one when the run goes on."""
        return by_writer(self._kept_id)

    def _kept_id(self) -> str:
        with suppress(Missing):
            if is_id(kept := self._store.read(RUN_ID).decode(errors="replace")):
                return kept
        self._require()
        self._store.write(RUN_ID, (made := new_id()).encode())
        return made

    def clean(self) -> None:
        """Deletes what is left on this process's disk."""
        shutil.rmtree(self.work, ignore_errors=True)  # Orbax's other writes of a failed save may still add files

    def steps(self) -> list[int]:
        """Those that were whole when the job began, and its own that all processes know of."""
        return sorted(self._measured)

    def delete(self, steps: Iterable[int]) -> None:
        """Deletes them in the store."""
        gone = set(steps)
        by_writer(lambda: self._remove(lambda name: name.isdecimal() and int(name) in gone))
        self._measured = {step: measured for step, measured in self._measured.items() if step not in gone}

    def delete_frozen(self) -> None:
        """Deletes them in the store."""
        by_writer(lambda: self._remove(lambda name: name == FROZEN))
        self._has_frozen = False

    def begin(self, name: str) -> None:
        """Gives the save a name that no other has."""
        self._save = f"{from_writer(secrets.randbits(30)):08x}"

    def make_folders(self, name: str, items: Sequence[str]) -> None:
        """Makes those for which Orbax waits, on the disks on which it makes none."""
        prepare(self.work / f"{name}{UNFINISHED}", items, UNFINISHED)

    def written(self, name: str) -> None:
        """Uploads this process's part, its list of values last; that of process 0 comes with the rest."""
        unfinished = self.work / f"{name}{UNFINISHED}"
        for part in parts_in(unfinished, jax.process_index()):
            split(part)
        if is_writer():
            return
        files = [str(path.relative_to(unfinished)) for path in sorted(unfinished.rglob("*")) if path.is_file()]
        values = [file for file in files if is_value(file)]
        hashes = file_hashes(unfinished, values)
        listed = {
            final_name(file, UNFINISHED): ((unfinished / file).stat().st_size, sha) for file, sha in hashes.items()
        }
        below, scratch = self._store.below(name), self._store.below(f"{SCRATCH}/{self._save}/{jax.process_index()}")
        _each(lambda file: below.upload(unfinished / file, final_name(file, UNFINISHED)), values)
        _each(lambda file: scratch.upload(unfinished / file, file), [file for file in files if not is_value(file)])
        scratch.write(FILES, json.dumps(listed).encode())

    def joining(self, name: str) -> None:
        """Fetches the trees of the other parts, and the lists of their values."""
        self._others = {}
        for process in range(1, jax.process_count()):
            scratch = self._store.below(f"{SCRATCH}/{self._save}/{process}")
            trees = [file for file in scratch.list() if file != FILES]
            _each(lambda file, of=scratch: of.download(file, self.work / f"{name}{UNFINISHED}" / file), trees)
            self._others |= json.loads(scratch.read(FILES))

    def complete(self, name: str) -> None:
        """Uploads process 0's files and the logs, and writes the list of all files last."""
        unfinished, below = self.work / f"{name}{UNFINISHED}", self._store.below(name)
        write_files(unfinished)
        own = json.loads((unfinished / FILES).read_text(encoding="utf-8"))
        held = below.list()
        self._require()
        below.delete([file for file in (FILES, DAMAGED) if file in held])
        send_logs(self._stage, self._local.parent, self._require)
        _each(lambda file: self._upload(below, unfinished, file), own)
        listed = own | self._others
        self._require()
        below.delete(held.keys() - listed.keys() - {FILES, DAMAGED})
        below.write(FILES, json.dumps(listed, indent=1).encode())

    def _upload(self, below: Store, unfinished: Path, file: str) -> None:
        self._require()
        below.upload(unfinished / file, file)

    def saved(self, name: str, measured: Mapping[str, float]) -> None:
        """Frees this process's disk; process 0 removes from the store what does not stay, also of failed saves."""
        self.clean()
        self._copies.clear()
        with suppress(FileNotFoundError):  # another process of this host deletes them too
            delete_steps(self._local, steps_in(self._local))  # of a job whose hosts shared this folder
        if not is_writer():
            return
        stay = {FROZEN, RUN_ID, *map(str, self._staying(name, measured))}
        self._remove(lambda other: other not in stay)

    def settled(self, name: str, measured: Mapping[str, float]) -> None:
        """Counts it."""
        if name == FROZEN:
            self._has_frozen = True
            return
        known = self._measured | {int(name): dict(measured)}
        self._measured = {step: known[step] for step in self._staying(name, measured)}

    def _staying(self, name: str, measured: Mapping[str, float]) -> set[int]:
        if name == FROZEN:
            return set(self._measured)
        return kept_steps(self._measured | {int(name): dict(measured)}, self._settings)

    def folder(self, name: str | None, wanted: Mapping[str, Shapes]) -> Path:
        """Its copy on this host."""
        if name is None:
            return self._newest(wanted)
        if (reason := self._brought_to_all(name, wanted)) is not None:
            raise CheckpointError(f"{self._store.url}/{name}: {reason}; use another step or start a new run")
        return self._copies.path(name)

    def _newest(self, wanted: Mapping[str, Shapes]) -> Path:
        """The newest that every host could fetch; one that is damaged in the store is named, and does not count."""
        damaged: list[str] = []
        for candidate in reversed(self.steps()):
            if (reason := self._brought_to_all(str(candidate), wanted)) is None:
                return self._copies.path(str(candidate))
            damaged.append(f"step {candidate}: {reason}")
            by_writer(partial(self._set_aside, str(candidate)))
            del self._measured[candidate]
            self._progress.note(f"the checkpoint of step {candidate} cannot be used: {reason}")
        if not damaged:
            raise CheckpointError(f"{self._store.url}: no checkpoint here")
        raise CheckpointError(
            f"{self._store.url}: every checkpoint is damaged ({'; '.join(damaged)}); delete {self._stage.url} to start "
            "over"
        )

    def has(self, name: str) -> bool:
        """Whether it counts."""
        return self._has_frozen if name == FROZEN else int(name) in self._measured

    def _brought_to_all(self, name: str, wanted: Mapping[str, Shapes]) -> str | None:
        """Fetches what each process reads of a checkpoint; what is wrong with it, if one finds something. Raises
        `AgreedError`, in all processes, if a host does not reach the store, or cannot keep what it fetches."""
        return from_first(together(partial(self._brought, name, wanted)))

    def _brought(self, name: str, wanted: Mapping[str, Shapes]) -> str | None:
        try:
            self._copies.bring(name, wanted)
        except (ArtifactError, Missing) as error:
            return str(error)
        return None

    def _is_here(self, name: str) -> bool:
        """Whether this host has the store's checkpoint, intact."""
        here = self._local / name
        try:
            is_same = (here / FILES).read_bytes() == self._store.read(f"{name}/{FILES}")
        except (FileNotFoundError, Missing):
            return False
        return is_same and damage(here) is None

    def _set_aside(self, name: str) -> None:
        """Lets a damaged checkpoint not count any more; its files stay until its step is saved again."""
        self._require()
        self._store.write(f"{name}/{DAMAGED}", self._store.read(f"{name}/{FILES}"))
        self._store.delete([f"{name}/{FILES}"])

    def _remove(self, is_old: Callable[[str], bool]) -> None:
        """Removes what is not damaged from the store, `files.json` first."""
        held = self._store.list()
        damaged = {name.split("/")[0] for name in held if name.endswith(f"/{DAMAGED}")}
        old = [name for name in held if is_old(top := name.split("/")[0]) and top not in damaged]
        if old:
            self._require()
            self._store.delete(sorted(old, key=lambda name: not name.endswith(f"/{FILES}")))


def fetch_kept(to: Destination, local: Path, progress: Progress) -> None:
    """Fetches all checkpoints that the store keeps of a finished stage, and removes what is only here: the finished
    artifact has them. Called by the process that finishes it."""
    store = to.store.below(local.name)
    whole = _whole(store.list())
    shutil.rmtree(local / STAGING, ignore_errors=True)
    delete_steps(local, [step for step in steps_in(local) if str(step) not in whole])
    for name in sorted(whole):
        here = local / name / FILES
        if not here.is_file() or here.read_bytes() != store.read(f"{name}/{FILES}") or damage(local / name) is not None:
            fetch_checkpoint(store, local, name, progress)


def _whole(held: Mapping[str, StoredObject]) -> set[str]:
    return {name.split("/")[0] for name in held if name.count("/") == 1 and name.endswith(f"/{FILES}")}


def _each(work: Callable[[str], object], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, names))
