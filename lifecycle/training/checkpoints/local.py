"""Local checkpoints: each process writes its own part of the state to its host's disk, often, beside the durable ones.

After a failure most hosts still have theirs, and a host that came back empty gets its pieces from a process with the
same ones: with `mesh.replica` a lost slice gets them from another slice, over the network between them. The durable
store is not read. Orbax's emergency manager does this between slices only, verifies no bits, and is experimental.

What must hold: a step is restored only if each of its pieces is intact in some process, and then every bit is what was
saved. If processes come back on other hosts, or on another mesh, no step is whole, and the durable one is used.
"""

import hashlib
import secrets
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.distributed import from_writer
from lifecycle.core.files import temporary, write_text
from lifecycle.core.progress import Progress
from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.agreement import from_first, gathered
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.checkpoints.local_files import LocalPart, write_part
from lifecycle.training.checkpoints.pieces import Holders, assembled, copied_pieces, names_by_device, sources
from lifecycle.training.config import LocalCheckpointConfig

RUN_ID = "run_id"  # a file beside the durable checkpoints: a run that starts over does not take up the old one's
MOST = 4  # steps on one host: two whole ones, and what a kill left


@dataclass(frozen=True)
class Found:
    """A local checkpoint that is whole."""

    step: int
    state: PyTree
    data_state: dict[str, Any]


class LocalCheckpoints:
    """The local checkpoints of the run in `out`, in `settings.folder/<run>/<process>/<step>/`: the last that is whole
    in all processes, and the one after it. `durable` is the folder of the durable ones. All processes of a job make the
    same calls."""

    def __init__(self, settings: LocalCheckpointConfig, out: Path, durable: Path, progress: Progress) -> None:
        self.settings, self._progress = settings, progress
        place = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:8]  # two runs of one name are two runs
        name, run = f"{out.name}-{place}", _run_id(durable)
        self._run = Path(settings.folder).absolute() / f"{name}-{run}"
        self._folder = self._run / str(jax.process_index())
        for other in self._run.parent.glob(f"{name}-*"):
            if other != self._run:  # of this run before it started over
                shutil.rmtree(other, ignore_errors=True)  # another process of this host may be deleting it too
        for unfinished in self._folder.glob(temporary(Path("*")).name):  # of a killed process
            shutil.rmtree(unfinished)
        self._thread = ThreadPoolExecutor(1, "local checkpoint")
        self._pending: Future[None] | None = None
        self._failing: list[int] = []

    def save(self, step: int, state: PyTree, data_state: dict[str, Any]) -> None:
        """Copies this process's pieces and starts to write them. Waits for the one before; if a process could not write
        that, says so once, as the durable checkpoints are there still."""
        self.finish()
        pieces, facts = copied_pieces(_named(state)), {"step": step, "data_state": data_state}
        self._pending = self._thread.submit(self._write, step, pieces, facts)

    def finish(self) -> None:
        """Waits for the pending save of all processes; the older ones are then deleted."""
        if self._pending is None:
            return
        error, self._pending = self._pending.exception(), None
        if error is not None and not isinstance(error, OSError):
            raise error
        failing = np.flatnonzero(gathered(np.int32(error is not None))).tolist()
        if failing and failing != self._failing:
            why = f" ({error})" if error is not None else ""
            self._progress.note(f"{self._run}: processes {failing} could not write a local checkpoint{why}")
        self._failing = failing
        if not failing:
            for step in steps_in(self._folder)[:-1]:
                shutil.rmtree(self._folder / str(step))

    def restore(self, like: PyTree, newer_than: int) -> Found | None:
        """The newest local checkpoint that is whole and newer than a step, or None; those after it are deleted. `like`
        has the state's structure, with `shape`, `dtype` and `sharding` at its leaves."""
        found = self._newest(like, newer_than)
        self.drop_after(newer_than if found is None else found.step)
        return found

    def drop_after(self, step: int) -> None:
        """Deletes this process's parts of later steps: these come again, and must not be joined with what is left."""
        self.finish()
        for later in steps_in(self._folder):
            if later > step:
                shutil.rmtree(self._folder / str(later))

    def delete(self) -> None:
        """Deletes this process's part: for after the last step, which is saved durably."""
        self.finish()
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # the parts of other processes of this host are there, or all is gone
            self._run.rmdir()

    def close(self) -> None:
        """Ends the thread, once it has written what is pending."""
        self._thread.shutdown()

    def _newest(self, like: PyTree, newer_than: int) -> Found | None:
        leaves = _named(like)
        for step in self._steps(newer_than):
            part = LocalPart(self._folder / str(step))
            holders = _holders(leaves, part)
            if any(sources(names_by_device(name, leaf), holders[name]) is None for name, leaf in leaves.items()):
                self._progress.note(f"{self._run}: the local checkpoint of step {step} is not whole")
                continue
            facts = from_first(part.facts)
            if facts is None:
                continue
            arrays = [assembled(name, leaf, holders[name], part.read) for name, leaf in leaves.items()]
            self._progress.note(f"{self._run}: resuming from the local checkpoint of step {step}")
            return Found(step, jax.tree.unflatten(jax.tree.structure(like), arrays), facts["data_state"])
        return None

    def _write(self, step: int, pieces: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        folder = self._folder / str(step)
        if folder.is_dir():  # of a step that ran before, on another mesh or damaged
            shutil.rmtree(folder)
        write_part(folder, pieces, facts)

    def _steps(self, newer_than: int) -> list[int]:
        """The steps that any process has, newest first."""
        own = [step for step in steps_in(self._folder) if step > newer_than][-MOST:]
        every = gathered(np.array(own + [-1] * (MOST - len(own)), np.int32))
        return sorted({int(step) for step in every.flat if step >= 0}, reverse=True)


def _run_id(durable: Path) -> str:
    """The run's identity: a new one if its folder of durable checkpoints has none."""
    path = durable / RUN_ID
    known = path.is_file()
    run = from_writer(int(path.read_text(encoding="utf-8"), 16) if known else secrets.randbits(31))
    if jax.process_index() == 0 and not known:
        write_text(path, f"{run:08x}")
    return f"{run:08x}"


def _named(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _holders(leaves: dict[str, Any], part: LocalPart) -> dict[str, Holders]:
    """For each array and device: whether the device's process has that device's piece."""
    checked: dict[str, bool] = {}
    own = []
    for name, leaf in leaves.items():
        pieces = names_by_device(name, leaf)
        mine = [piece for device, piece in pieces.items() if device.process_index == jax.process_index()]
        shape = leaf.sharding.shard_shape(leaf.shape)
        for piece in mine:
            if piece not in checked:
                checked[piece] = part.has(piece, shape, leaf.dtype)
        own.append([checked[piece] for piece in mine])
    every = gathered(np.array(own))  # [process, array, device of the process]
    found = {}
    for number, (name, leaf) in enumerate(leaves.items()):
        answers = [iter(every[process, number]) for process in range(jax.process_count())]
        found[name] = {device: bool(next(answers[device.process_index])) for device in names_by_device(name, leaf)}
    return found
