"""Checkpoints by Orbax: written while training continues, atomic, restored on any mesh.

Training stands still only while the devices copy the state. All that Orbax does, from its first file to the last, is
done in a thread: its own asynchronous save returns after 0.1 to 0.2 s in which it makes folders and starts threads.

A step's folder has the items `params`, `opt_state` and, if the run keeps one, `average` (arrays by canonical name, one
per layer: `weights/names.py`, independent of stacking), `data_state` and `meta` (JSON). Orbax writes under a temporary
name and renames at the end; before that, `files.json` is added (`integrity.py`). Where the hosts share no folder,
checkpoints are kept in a store (`stored.py`). Frozen parameters are written once, to `frozen`. Orbax's
`CheckpointManager` is not used: after a failed save it counts that step as saved, and forgets the steps that were to be
deleted. What must hold: a checkpoint that a reader accepts is bit for bit what was saved, and a save that fails in one
process is an error in all.
"""

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from weakref import ref

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.agreement import TOLD, gathered, sync
from lifecycle.training.checkpoints.arrays import abstract_arrays, require_same, stacked
from lifecycle.training.checkpoints.commit import WRITTEN, Commit, told
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.checkpoints.home import Home, SharedFolder
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.items import by_item, joined
from lifecycle.training.checkpoints.reading import read_arrays
from lifecycle.training.checkpoints.retention import MEASURED
from lifecycle.training.checkpoints.stored import InStore
from lifecycle.training.checkpoints.weights import FROZEN
from lifecycle.training.memory import has_room
from lifecycle.weights.names import unstack

SAVING, SAVED, FAILED = range(3)  # a pending save in one process


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """Whether the record is Orbax's, or asyncio's about an exception in one of Orbax's tasks."""
    error = record.exc_info[1] if record.exc_info else None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)] if error else []
    return any("orbax" in Path(file).parts for file in (record.pathname, *files))


# Orbax logs one failed write a dozen times, each with its stack, and leaves the failures of the other writes to
# asyncio, which logs them when they are collected; the failure is raised here, once, with what to do.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(lambda record: not _is_of_orbax(record))


class Checkpointer:
    """The checkpoints of one run, in `folder/<step>/`, or for processes with folders of their own in the store `to`;
    which of them stay is in `settings`.

    On opening, damaged checkpoints newer than the newest intact one are renamed to `<step>.damaged`, with a note to
    `progress`, and what a killed process left unfinished is deleted; if no checkpoint is intact, `CheckpointError`. All
    processes of a job make the same calls.
    """

    def __init__(
        self, folder: Path, settings: CheckpointConfig, progress: Progress | None = None, to: Destination | None = None
    ) -> None:
        self.folder, self.settings = folder.absolute(), settings
        self._home: Home = SharedFolder(self.folder, settings) if to is None else InStore(to, self.folder, settings)
        self._progress = progress or Silent()
        self._home.open(self._progress)
        self._home.clean()
        sync("unfinished checkpoints deleted")
        self._commit = Commit(60 * settings.max_save_minutes)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: int | str = FROZEN  # what is being written, or was last
        self._measured: Mapping[str, float] = {}  # at its step
        self._pending: Future[None] | None = None
        self._on_host = Event()  # the devices' copies are
        self._copies: list[ref[jax.Array]] = []  # the devices', of the save that is pending or was last
        self._left = ""  # why older checkpoints stayed that should not
        self._copy: Any = None
        self._has_room: bool | None = None  # for the copies beside a step

    def run_id(self) -> str:
        """The run's identity, which a run that starts over does not share with the one before."""
        return self._home.run_id()

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None; a pending save counts once it is complete."""
        return max(self._home.steps(), default=None)

    def last_due(self, step: int) -> int:
        """The newest checkpoint before `step` that was due by steps, else 0; waits for a pending save."""
        self.wait()
        every = self.settings.every
        return max((saved for saved in self._home.steps() if saved < step and saved % every == 0), default=0)

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`; waits for a pending save."""
        self.wait()
        self._home.delete([saved for saved in self._home.steps() if saved > step])

    def prepare(self, state: PyTree) -> None:
        """Compiles the copy of a state before the first save needs it, and copies nothing: what the devices have held
        at most decides later whether there is room for a copy."""
        self._copying(state).lower(state).compile()

    def save(self, step: int, state: PyTree, data_state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts to save `state`, a tree of arrays with `params` at its top; does nothing if `step` is saved already.

        When it returns, the devices copy the arrays, so `state` may be donated. They hold the copies until these are on
        the host, during the next steps; where there is no room for that, it returns when they are. Waits for a pending
        save first, and raises `CheckpointError` if that failed; whether this one did is learned from `settle`, or from
        `wait`.
        """
        self.wait()
        if step == self.latest_step():
            return
        if self._has_room is None:  # before there are copies: the most that a step needed
            self._has_room = has_room(state)
        copied = self._copied(state)
        self._copies = [ref(array) for array in copied.values()]
        arrays = {item: ocp.args.StandardSave(part) for item, part in by_item(copied).items()}
        items = ocp.args.Composite(**arrays, data_state=ocp.args.JsonSave(data_state), meta=ocp.args.JsonSave(meta))
        self._saving, self._measured = step, meta.get(MEASURED, {})
        self._begin(list(arrays), items)
        del copied, arrays, items  # the thread frees the copies
        if not self._has_room:
            self._on_host.wait()

    def save_frozen(self, params: PyTree) -> None:
        """Saves the frozen parameters, replacing any saved before, and waits until they are written. Damaged ones are
        set aside."""
        self.wait()
        self._home.delete_frozen()
        if not params:
            return
        self._saving, self._measured, self._copies = FROZEN, {}, []
        self._begin([], ocp.args.StandardSave(unstack(params)))
        self.wait()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
        """(state, data_state, meta) of `step`, or of the newest.

        `abstract_state` has the state's structure, with `shape`, `dtype` and `sharding` at its leaves; the mesh may
        differ from the one the checkpoint was saved on. Raises `CheckpointError` if it does not fit.
        """
        wanted = by_item(abstract_arrays(abstract_state))
        path = self._home.folder(None if step is None else str(step), wanted)
        for item, arrays in wanted.items():
            require_same(path / item, arrays)
        flat = joined({item: read_arrays(path / item, arrays) for item, arrays in wanted.items()})
        facts = ocp.args.Composite(data_state=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            saved = reader.restore(path, args=facts)
        return stacked(flat, abstract_state), saved["data_state"], saved["meta"]

    def restore_frozen(self, abstract_params: PyTree) -> PyTree:
        """The parameters that `save_frozen` wrote, given their structure as for `restore`."""
        if not abstract_params and not self._home.has(FROZEN):
            return {}
        arrays = abstract_arrays(abstract_params)
        path = self._home.folder(FROZEN, {"": arrays})
        require_same(path, arrays)
        return stacked(read_arrays(path, arrays), abstract_params)

    def settle(self, *, is_waiting: bool = False) -> bool:
        """Whether no save is pending any more, in any process of the job.

        Raises `CheckpointError`, in all processes, if the pending save has failed in one of them; what it left is then
        deleted. With `is_waiting` it waits for the end of a pending save.
        """
        if self._pending is None:
            return True
        if is_waiting:
            wait([self._pending])
        error = self._pending.exception() if self._pending.done() else None
        states = gathered(SAVING if not self._pending.done() else SAVED if error is None else FAILED)
        if SAVING in states:
            return False
        self._pending = None
        if FAILED in states:
            self._home.clean()
            raise self._failure(told(error) if error else "another process could not write its part") from error
        self._home.settled(str(self._saving), self._measured)
        return True

    def wait(self) -> None:
        """Waits for the pending save; raises `CheckpointError`, in all processes, if it fails in one."""
        self.settle(is_waiting=True)

    def close(self) -> None:
        """Waits for this process's part of a pending save, raises if that failed, and ends the threads."""
        pending, self._pending = self._pending, None
        self._thread.shutdown()
        if pending is not None and (error := pending.exception()) is not None:
            raise self._failure(told(error)) from error

    def _begin(self, items: Sequence[str], args: ocp.args.CheckpointArgs) -> None:
        """Starts the save of `args` with the arrays of these items, in the thread."""
        self._commit, self._on_host = Commit(60 * self.settings.max_save_minutes), Event()
        self._home.begin(str(self._saving))
        self._pending = self._thread.submit(self._write, self._commit, items, [args])

    def _write(self, commit: Commit, items: Sequence[str], args: list[ocp.args.CheckpointArgs]) -> None:
        """`args` is emptied when its arrays are on the host, which frees them on the devices."""
        is_complete = False
        try:
            with commit:
                self._home.clean()
                prepare = partial(self._home.make_folders, str(self._saving), items)
                with commit.writer(args[0], self._options(), prepare) as writer:
                    writer.save(self._home.work / str(self._saving), args=args.pop())
                    self._on_host.set()
                    writer.wait_until_finished()
            is_complete = True
        finally:
            if not is_complete:
                self._free_copies()
            self._on_host.set()
        self._delete_others()

    def _free_copies(self) -> None:
        """Frees the devices' copies of a save that failed: the frames of its error, and Orbax's writes that nobody
        awaits, may hold them until Python next collects cycles."""
        for kept in self._copies:
            if (array := kept()) is not None:
                array.delete()

    def _delete_others(self) -> None:
        """Deletes what does not stay beside the checkpoint that is complete now. What cannot be deleted is told, once,
        and deleted after a later save: this one has not failed."""
        try:
            self._home.saved(str(self._saving), self._measured)
            self._left = ""
        except TOLD as error:
            if str(error) != self._left:
                self._progress.note(f"older checkpoints are deleted after a later save: {error}")
            self._left = str(error)

    def _options(self) -> ocp.options.AsyncOptions:
        def meet(key: str, timeout_ms: int) -> None:
            del key
            if has_written := self._commit.next_meeting == WRITTEN:
                self._home.written(str(self._saving))
            self._commit.meet(timeout_ms)
            if has_written and is_writer():
                self._home.joining(str(self._saving))

        return ocp.options.AsyncOptions(
            timeout_secs=math.ceil(60 * self.settings.max_save_minutes),
            post_finalization_callback=self._complete,
            barrier_sync_fn=meet,
            create_directories_asynchronously=False,
        )

    def _copied(self, state: PyTree) -> dict[str, jax.Array]:
        """The state's arrays by canonical name, none of which shares memory with it."""
        return self._copying(state)(state)

    def _copying(self, state: PyTree) -> Any:
        if self._copy is None:
            shardings = {name: leaf.sharding for name, leaf in abstract_arrays(state).items()}
            self._copy = jax.jit(lambda tree: unstack(jax.tree.map(jnp.copy, tree)), out_shardings=shardings)
        return self._copy

    def _failure(self, cause: str) -> CheckpointError:
        what = f"the checkpoint of step {self._saving}" if self._saving != FROZEN else "the frozen parameters"
        return CheckpointError(
            f"{self.folder}: {what} could not be written ({cause}); free some space, or repair the folder or the way "
            f"to the store, and run again: it continues from step {self.latest_step() or 0}"
        )

    def _complete(self) -> None:
        """A folder is complete except for its rename; runs in Orbax's thread."""
        if is_writer():
            self._home.complete(str(self._saving))
