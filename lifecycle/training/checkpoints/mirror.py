"""Copies of checkpoints in a store, so that training outlives the machine that it runs on.

Checkpoints are written to the local folder, as in any run. A thread copies each one that is complete: the logs first,
then its files, `files.json` last, so that a kill leaves a checkpoint that readers of the store do not take for whole,
and a log that covers it. What must hold: once one has been copied, the store has a whole checkpoint at every moment,
except while the only one is replaced because the run went back to its start.
"""

import json
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from shutil import rmtree

from lifecycle.core.artifact import LEDGER, MANIFEST, ArtifactError, FileFacts
from lifecycle.core.files import FILES, temporary
from lifecycle.core.lease import LeaseError
from lifecycle.core.periodic import repeated
from lifecycle.core.progress import Progress
from lifecycle.core.published import fetch, require_inside, upload
from lifecycle.core.store import Missing, Store, StoreError
from lifecycle.training.checkpoints.integrity import aside, damage, steps_in
from lifecycle.training.checkpoints.weights import FROZEN

LOOK_EVERY_S = 1.0
LOGS = ("*.jsonl", LEDGER)  # of a stage's folder: they come with its checkpoints


class Mirror:
    """The copies of one training stage's checkpoints. `folder` is the stage's, `store` that of its artifact, `name` the
    checkpoints' folder in both; `require` raises if this process may not write."""

    def __init__(
        self, store: Store, folder: Path, name: str, progress: Progress, require: Callable[[], None] = lambda: None
    ) -> None:
        self._store, self._folder, self._name = store, folder, name
        self._progress, self._require = progress, require
        self._copied: dict[str, int] = {}  # those that are whole in the store: the time of the local `files.json`
        self._left: list[int] = []  # the steps here when the store had no others
        self._told = ""  # the newest failure: one that lasts is told once

    def restore(self) -> None:
        """Fetches the checkpoints that are whole in the store and not here, the newest first. If one is newer than the
        intact ones here, its logs come before it, so that wherever this is killed, the log covers the checkpoints that
        are here. One that is not whole is named and passed over.

        The store holds those that were kept: `copy` removes there what is not here, and so does the finished artifact.
        """
        held = self._store.list()
        if MANIFEST in held:
            return
        here = self._steps_here()
        newest = max(here, default=-1)
        names = {
            name.split("/")[1] for name in held if name.startswith(f"{self._name}/") and name.endswith(f"/{FILES}")
        }
        for step in sorted({int(name) for name in names if name.isdecimal()} - here, reverse=True):
            if step > newest:
                bring_logs(self._store, self._folder)
            if not self._fetch_step(step, with_frozen=FROZEN in names) or step < newest:
                continue
            newest = step
            self._progress.note(f"{self._store.url}: going on from its checkpoint of step {step}")

    @contextmanager
    def running(self) -> Generator[None]:
        """Copies checkpoints in a thread while the block runs; of a block that is stopped, also the last one.

        A failed copy is told, and tried again; what publishes the finished artifact raises it.
        """
        try:
            with repeated(self._try_to_copy, LOOK_EVERY_S, "mirror"):
                yield
        except Exception:
            self._try_to_copy()
            raise

    def _steps_here(self) -> set[int]:
        """The newest intact step here and the older ones: newer ones are damaged, and those of the store serve."""
        folder = self._folder / self._name
        steps = steps_in(folder)
        newest = next((step for step in reversed(steps) if damage(folder / str(step)) is None), -1)
        return {step for step in steps if step <= newest}

    def _fetch_step(self, step: int, *, with_frozen: bool) -> bool:
        """Whether the store's checkpoint of a step was whole; if not, it does not count any more in the store."""
        try:
            if with_frozen and damage(self._folder / self._name / FROZEN) is not None:
                self._fetch(FROZEN)
            self._fetch(str(step))
        except ArtifactError as error:
            self._progress.note(f"the checkpoint of step {step} cannot be used: {error}")
            self._require()
            self._store.delete([f"{self._name}/{step}/{FILES}"])
            return False
        return True

    def _fetch(self, name: str) -> None:
        fetch_checkpoint(self._store.below(self._name), self._folder / self._name, name, self._progress)

    def _try_to_copy(self) -> None:
        try:
            self.copy()
            self._told = ""
        except (StoreError, LeaseError, OSError) as error:  # the store is away, or the run is another process's
            if str(error) != self._told:
                self._progress.note(f"checkpoints are not copied: {error}")
            self._told = str(error)
            time.sleep(LOOK_EVERY_S)

    def copy(self) -> None:
        """Copies the frozen parameters and the complete checkpoints, the newest first, unless they are there; then
        removes the copies of those that are no longer kept."""
        try:
            while lacking := self._lacking():  # looked at again after each: a newer one goes first
                self._copy(lacking[0])
        except FileNotFoundError:  # deleted meanwhile, being too old; the others are copied at the next look
            return
        steps = steps_in(self._folder / self._name)
        if steps != self._left and steps and str(steps[-1]) in self._copied:  # listing what is held has a price
            self._remove_others({FROZEN, *map(str, steps)})
            self._left = steps

    def _lacking(self) -> list[str]:
        """What is to be copied: first what is not whole in the store, then the steps that it has with other files,
        from before the run went back. These come last, so that another one is whole while they are replaced."""
        folder = self._folder / self._name
        missing, replaced = [], []
        for name in [FROZEN, *(str(step) for step in reversed(steps_in(folder)))]:
            saved = _saved_at(folder / name)
            if saved is None or saved == self._copied.get(name):
                continue
            there = self._listing(name)
            if there is None:
                missing.append(name)
            elif name == FROZEN or there == (folder / name / FILES).read_bytes() or damage(folder / name) is not None:
                self._copied[name] = saved
            else:
                replaced.append(name)
        return missing + replaced

    def _listing(self, name: str) -> bytes | None:
        """The list of files of a checkpoint in the store; None if it is not whole there."""
        try:
            return self._store.read(f"{self._name}/{name}/{FILES}")
        except Missing:
            return None

    def _copy(self, name: str) -> None:
        source, below = self._folder / self._name / name, self._store.below(f"{self._name}/{name}")
        saved, listing = _saved_at(source), (source / FILES).read_bytes()
        send_logs(self._store, self._folder, self._require)
        self._require()
        below.delete(sorted(below.list(), key=lambda file: file != FILES))  # another copy, or a part of one
        files = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
        upload(below, source, [file for file in files if file != FILES], self._require)
        self._require()
        below.write(FILES, listing)  # as read before the others: if they were saved again meanwhile, it is replaced
        if saved is not None:
            self._copied[name] = saved

    def _remove_others(self, kept: set[str]) -> None:
        held = self._store.list(self._name)
        old = [name for name in held if name.split("/")[1] not in kept]
        if old:
            self._require()
            self._store.delete(sorted(old, key=lambda name: not name.endswith(f"/{FILES}")))  # `files.json` first


def fetch_checkpoint(store: Store, place: Path, name: str, progress: Progress) -> None:
    """Makes a local checkpoint, `place/name`, of one that is whole in the store of all of them, every file verified; a
    damaged one that is there is renamed. Raises `ArtifactError` for one that is damaged in the store."""
    below, final = store.below(name), place / name
    listing = below.read(FILES)
    unfinished = temporary(final)
    facts = files_listed(listing, below)
    rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fetch(below, unfinished, facts)
    (unfinished / FILES).write_bytes(listing)
    if final.exists():
        progress.note(f"{final}: damaged ({damage(final)}); using the store's")
        final.rename(aside(place, name))
    unfinished.rename(final)


def files_listed(listing: bytes, below: Store) -> dict[str, FileFacts]:
    """The files in the list of a checkpoint; raises `ArtifactError` if it is not one."""
    try:
        facts = {file: FileFacts(bytes=size, sha256=sha) for file, (size, sha) in json.loads(listing).items()}
    except (ValueError, TypeError):
        raise ArtifactError(f"{below.url}/{FILES}: not a list of files") from None
    require_inside(facts, f"{below.url}/{FILES}")
    return facts


def _logs(held: Iterable[str]) -> list[str]:
    return [name for name in held if any(fnmatch(name, log) for log in LOGS) and "/" not in name]


def send_logs(store: Store, folder: Path, require: Callable[[], None]) -> None:
    """Copies a stage's logs to its store."""
    upload(store, folder, [path.name for pattern in LOGS for path in folder.glob(pattern)], require)


def bring_logs(store: Store, folder: Path) -> None:
    """Copies a stage's logs from its store, except for those that are here with more at their end."""
    for log in _logs(store.list()):
        known = store.read(log)
        if not (folder / log).is_file() or not (folder / log).read_bytes().startswith(known):
            store.download(log, folder / log)


def _saved_at(path: Path) -> int | None:
    """When a checkpoint was completed, in ns; None if it is not complete."""
    try:
        return (path / FILES).stat().st_mtime_ns
    except FileNotFoundError:
        return None
