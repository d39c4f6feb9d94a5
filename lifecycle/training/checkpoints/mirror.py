"""Copies of checkpoints in a store, so that training outlives the machine that it runs on.

Checkpoints are written to the local folder, as in any run. A thread copies each one that is complete: the logs first,
then its files, `files.json` last, so that a kill leaves a checkpoint that readers of the store do not take for whole,
and a log that covers it. What must hold: once one has been copied, the store has a whole checkpoint at every moment.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from shutil import rmtree

from lifecycle.core.artifact import LEDGER, MANIFEST, ArtifactError, FileFacts
from lifecycle.core.files import FILES, temporary
from lifecycle.core.lease import LeaseError
from lifecycle.core.periodic import repeated
from lifecycle.core.progress import Progress
from lifecycle.core.published import fetch, upload
from lifecycle.core.store import Store, StoreError
from lifecycle.training.checkpoints.integrity import steps_in
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
        self._copied: set[str] = set()  # the checkpoints that are whole in the store
        self._told = ""  # the newest failure: one that lasts is told once

    def restore(self) -> None:
        """Fetches the newest checkpoint that is whole in the store, if it is newer than the local ones, with its logs.

        One that is not whole is named, and the next older one is fetched.
        """
        held = self._store.list()
        if MANIFEST in held:
            return
        newest_here = max(steps_in(self._folder / self._name), default=-1)
        names = [
            name.split("/")[1] for name in held if name.startswith(f"{self._name}/") and name.endswith(f"/{FILES}")
        ]
        for step in sorted((int(name) for name in names if name.isdecimal() and int(name) > newest_here), reverse=True):
            try:
                self._fetch([*[name for name in names if name == FROZEN], str(step)])
            except ArtifactError as error:
                self._progress.note(f"the checkpoint of step {step} cannot be used: {error}")
                self._require()
                self._store.delete([f"{self._name}/{step}/{FILES}"])  # not whole; its step is saved again
                continue
            for log in (name for name in held if any(fnmatch(name, log) for log in LOGS) and "/" not in name):
                self._store.download(log, self._folder / log)
            self._progress.note(f"{self._store.url}: going on from its checkpoint of step {step}")
            return

    @contextmanager
    def running(self) -> Iterator[None]:
        """Copies checkpoints in a thread while the block runs; of a block that is stopped, also the last one.

        A failed copy is told, and tried again; what publishes the finished artifact raises it.
        """
        try:
            with repeated(self._try_to_copy, LOOK_EVERY_S, "mirror"):
                yield
        except Exception:
            self._try_to_copy()
            raise

    def _fetch(self, names: list[str]) -> None:
        for name in names:
            below = self._store.below(f"{self._name}/{name}")
            listing = below.read(FILES)
            final = self._folder / self._name / name
            unfinished = temporary(final)
            try:
                facts = {file: FileFacts(bytes=size, sha256=sha) for file, (size, sha) in json.loads(listing).items()}
            except (ValueError, TypeError):
                raise ArtifactError(f"{below.url}/{FILES}: not a list of files") from None
            rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            fetch(below, unfinished, facts)
            (unfinished / FILES).write_bytes(listing)
            rmtree(final, ignore_errors=True)
            unfinished.rename(final)

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
        """Copies the newest complete checkpoint and the frozen parameters, unless they are there; then removes the
        copies of those that are no longer kept."""
        steps = [str(step) for step in steps_in(self._folder / self._name)]
        self._copied &= {FROZEN, *steps}  # a run that went back saves a step again
        for name in [FROZEN, *steps[-1:]]:
            try:
                self._copy(name)
            except FileNotFoundError:  # deleted meanwhile, being too old: the newer one comes next
                return
        if steps and steps[-1] in self._copied:
            self._remove_others({FROZEN, *steps})

    def _copy(self, name: str) -> None:
        source = self._folder / self._name / name
        if name in self._copied or not (source / FILES).is_file():
            return
        below = self._store.below(f"{self._name}/{name}")
        if below.head(FILES) is not None:  # whole, by an earlier session: replacing it could leave none
            self._copied.add(name)
            return
        logs = [path.name for pattern in LOGS for path in self._folder.glob(pattern)]
        upload(self._store, self._folder, logs, self._require)
        files = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
        upload(below, source, [file for file in files if file != FILES], self._require)
        self._require()
        below.upload(source / FILES, FILES)
        self._copied.add(name)

    def _remove_others(self, kept: set[str]) -> None:
        held = self._store.list(self._name)
        old = [name for name in held if name.split("/")[1] not in kept]
        if old:
            self._require()
            self._store.delete(sorted(old, key=lambda name: not name.endswith(f"/{FILES}")))  # `files.json` first
