"""Local checkpoints: each process writes its own part of the state to its host's disk, often, beside the durable ones.

After a failure most hosts still have theirs, and a host that came back empty, or as another process, gets its pieces
from a process that has them: with `mesh.replica` a lost slice gets them from another slice, over the network between
them. The durable store is not read. Orbax's emergency manager does this between slices only, verifies no bits, and is
experimental.

What must hold: a step is restored only if each of its pieces is intact on some host, and then every bit is what was
saved, by one session of the run: a host that was away may still have a step that the others have since trained again.
If processes come back on other hosts, or on another mesh, no step is whole, and the durable one is used.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.distributed import from_writer
from lifecycle.core.files import temporary
from lifecycle.core.progress import Progress
from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.agreement import from_first, gathered, sync
from lifecycle.training.checkpoints.config import LocalCheckpointConfig
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.checkpoints.local_files import HostParts, write_part
from lifecycle.training.checkpoints.pieces import Holders, assembled, copied_pieces, names_by_device, route, sources

MOST = 4  # steps on one host: two whole ones, and what a kill left


@dataclass(frozen=True)
class Found:
    """A local checkpoint that is whole."""

    step: int
    state: PyTree
    data_state: dict[str, Any]


class LocalCheckpoints:
    """The local checkpoints of the run in `out`, in `settings.folder/<run>/<session>/<process>/<step>/`: the last that
    is whole in all processes, and the one after it. `run_id` tells a run from the one that was here before it started
    over. A session's number is the minute in which it began. All processes of a job make the same calls."""

    def __init__(self, settings: LocalCheckpointConfig, out: Path, run_id: str, progress: Progress) -> None:
        self.settings, self._progress = settings, progress
        place = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:8]  # two runs of one name are two runs
        name = f"{out.name}-{place}"
        self._run = Path(settings.folder).absolute() / f"{name}-{run_id}"
        for other in self._run.parent.glob(f"{name}-*"):
            if other != self._run:  # of this run before it started over
                shutil.rmtree(other, ignore_errors=True)  # another process of this host may be deleting it too
        for unfinished in self._run.glob(temporary(Path("*/*/*")).as_posix()):  # of killed processes
            shutil.rmtree(unfinished, ignore_errors=True)
        last = int(gathered(np.int32(max(steps_in(self._run), default=0))).max())
        self._session = max(last + 1, from_writer(int(time.time() / 60)))  # in order, also if the clock goes back
        self._folder = self._run / str(self._session) / str(jax.process_index())
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
            self._delete_older()

    def restore(self, like: PyTree, newer_than: int) -> Found | None:
        """The newest local checkpoint that is whole and newer than a step, or None; those after it are deleted. `like`
        has the state's structure, with `shape`, `dtype` and `sharding` at its leaves."""
        found = self._newest(like, newer_than)
        self.drop_after(newer_than if found is None else found.step)
        return found

    def drop_after(self, step: int) -> None:
        """Deletes what the hosts have of later steps, which come again."""
        self.finish()
        for session, later in self._held():
            if later > step:
                for part in self._parts(session, later):
                    shutil.rmtree(part, ignore_errors=True)  # another process of this host may be deleting it too
        sync("local checkpoints deleted")

    def delete(self) -> None:
        """Deletes all: for after the last step, which is saved durably."""
        self.finish()
        shutil.rmtree(self._run, ignore_errors=True)

    def close(self) -> None:
        """Ends the thread, once it has written what is pending; says if this process could not."""
        self._thread.shutdown()
        if self._pending is not None and (error := self._pending.exception()) is not None:
            self._progress.note(f"{self._run}: this process could not write the last local checkpoint ({error})")

    def _newest(self, like: PyTree, newer_than: int) -> Found | None:
        leaves = _named(like)
        names = {name: names_by_device(name, leaf) for name, leaf in leaves.items()}
        for session, step in self._steps(newer_than):
            parts = HostParts(self._parts(session, step))
            holders = _holders(leaves, names, parts)
            elsewhere = _elsewhere(leaves, names, holders, parts)
            facts = from_first(parts.facts)
            if lacking := [piece for piece, having in elsewhere.items() if not having]:
                self._progress.note(f"{self._run}: the local checkpoint of step {step} is {_said(lacking, names)}")
            elif facts is not None:
                arrays = [
                    assembled(name, leaf, route(names[name], holders[name], elsewhere), parts.read)
                    for name, leaf in leaves.items()
                ]
                self._progress.note(f"{self._run}: resuming from the local checkpoint of step {step}")
                return Found(step, jax.tree.unflatten(jax.tree.structure(like), arrays), facts["data_state"])
        return None

    def _write(self, step: int, pieces: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        folder = self._folder / str(step)
        if folder.is_dir():  # of a step that ran before the run went back
            shutil.rmtree(folder)
        write_part(folder, pieces, facts)

    def _delete_older(self) -> None:
        for step in steps_in(self._folder)[:-1]:
            shutil.rmtree(self._folder / str(step))
        for session in steps_in(self._run):
            if session < self._session:
                shutil.rmtree(self._run / str(session), ignore_errors=True)  # by each process of this host

    def _parts(self, session: int, step: int) -> list[Path]:
        """What this host has of a step: what was written by the processes that it had."""
        return sorted(self._run.glob(f"{session}/*/{step}"))

    def _held(self) -> list[tuple[int, int]]:
        """The sessions and steps of which this host has a part, ascending."""
        return sorted(
            {(session, step) for session in steps_in(self._run) for folder in self._run.glob(f"{session}/*/")
             for step in steps_in(folder)}
        )  # fmt: skip

    def _steps(self, newer_than: int) -> list[tuple[int, int]]:
        """The sessions and steps of which any host has a part, newest first."""
        own = [held for held in self._held() if held[1] > newer_than][-MOST:]
        every = gathered(np.array(own + [(-1, -1)] * (MOST - len(own)), np.int32)).reshape(-1, 2)
        return sorted({(int(session), int(step)) for session, step in every if step >= 0}, reverse=True)


type Names = Mapping[str, Mapping[Any, str]]  # of each array: the piece that each device holds


def _named(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _holders(leaves: Mapping[str, Any], names: Names, parts: HostParts) -> dict[str, Holders]:
    """For each array and device: whether the device's process has that device's piece."""
    own = []
    for name, leaf in leaves.items():
        mine = [piece for device, piece in names[name].items() if device.process_index == jax.process_index()]
        shape = leaf.sharding.shard_shape(leaf.shape)
        own.append([parts.has(piece, shape, leaf.dtype) for piece in mine])
    every = gathered(np.array(own))  # [process, array, device of the process]
    found: dict[str, Holders] = {}
    for number, name in enumerate(leaves):
        answers = [iter(every[process, number]) for process in range(jax.process_count())]
        found[name] = {device: bool(next(answers[device.process_index])) for device in names[name]}
    return found


def _elsewhere(
    leaves: Mapping[str, Any], names: Names, holders: Mapping[str, Holders], parts: HostParts
) -> dict[str, list[int]]:
    """The processes that have each piece which no process of its own devices has; none for one that is lost."""
    sought = {
        piece: leaf
        for name, leaf in leaves.items()
        for piece in sorted({*names[name].values()} - sources(names[name], holders[name]).keys())
    }
    if not sought:
        return {}
    has = [parts.has(piece, leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for piece, leaf in sought.items()]
    every = gathered(np.array(has))  # [process, piece]
    return {piece: np.flatnonzero(every[:, number]).tolist() for number, piece in enumerate(sought)}


def _said(lacking: Sequence[str], names: Names) -> str:
    """What a checkpoint lacks."""
    lost, total = {*lacking}, len({piece for pieces in names.values() for piece in pieces.values()})
    processes = {d.process_index for pieces in names.values() for d, piece in pieces.items() if piece in lost}
    return (
        f"not whole: of its {total} pieces {len(lacking)} are on no host, the first {lacking[0]}; processes "
        f"{sorted(processes)} need them"
    )
