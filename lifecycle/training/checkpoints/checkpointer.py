"""Checkpoints by Orbax: written while training continues, atomic, restored on any mesh.

A step's folder has four items: `params` and `opt_state` (arrays by canonical name, one per layer: `weights/names.py`,
independent of stacking), `data_state` and `meta` (JSON). Orbax writes under a temporary name and renames at the end;
before that, `files.json` is added (`integrity.py`). Frozen parameters are written once, to `frozen`. What must hold: a
checkpoint that a reader accepts is bit for bit what was saved.
"""

import logging
import shutil
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lifecycle.core.progress import Progress, Silent
from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.arrays import abstract_arrays, require_same
from lifecycle.training.checkpoints.integrity import (
    CheckpointError,
    rename_damaged,
    require_intact,
    steps_in,
    sync,
    write_files,
)
from lifecycle.training.checkpoints.weights import FROZEN, PARAMS
from lifecycle.weights.names import stack_like, unstack

UNFINISHED = ocp.path.atomicity_types.TMP_DIR_SUFFIX
PREFIX = f"{PARAMS}."  # the name of a state's parameters begins with this
# What a failed write raises: an error of the file system or of the storage library.
SAVE_ERRORS = (OSError, ValueError, RuntimeError)


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
    """The checkpoints of one run, in `folder/<step>/`.

    One is due every `every` steps, and the last `keep` are kept. On opening, damaged checkpoints newer than the newest
    intact one are renamed to `<step>.damaged`, with a note to `progress`; if none is intact, `CheckpointError`. All
    processes of a job make the same calls.
    """

    def __init__(self, folder: Path, *, every: int, keep: int, progress: Progress | None = None) -> None:
        self.folder, self.every = folder.absolute(), every
        self.folder.mkdir(parents=True, exist_ok=True)
        rename_damaged(self.folder, progress or Silent())
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,  # incomplete folders of a killed run
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_files),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._saving: int | str | None = None
        self._unstack: Any = None

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None; a pending save counts once it is complete."""
        return max(steps_in(self.folder), default=None)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps. Called after each step: it raises `CheckpointError` as soon
        as a pending save has failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()
        return step % self.every == 0

    def save(self, step: int, state: PyTree, data_state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts to save `state`, a tree of arrays with `params` at its top; does nothing if `step` is saved already.

        When it returns, the arrays have been copied, so `state` may be donated; until then the devices hold the layers'
        arrays twice. Waits for a pending save first; raises `CheckpointError` if that failed.
        """
        self.wait()
        if step == self.latest_step():
            return
        params, rest = _split(self._unstacked(state))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            opt_state=ocp.args.StandardSave(rest),
            data_state=ocp.args.JsonSave(data_state),
            meta=ocp.args.JsonSave(meta),
        )
        self._saving = step
        self._raise_failure(partial(self._manager.save, step, args=items, force=True))

    def save_frozen(self, params: PyTree) -> None:
        """Saves the frozen parameters, replacing any saved before, and waits until they are written."""
        sync("frozen parameters are written")
        if jax.process_index() == 0:
            for path in self.folder.glob(f"{FROZEN}*"):  # also incomplete ones of a killed run
                shutil.rmtree(path)
        if not params:
            return
        self._saving = FROZEN
        options = ocp.AsyncOptions(post_finalization_callback=self._write_files)
        with ocp.StandardCheckpointer(async_options=options) as writer:
            self._raise_failure(partial(writer.save, self.folder / FROZEN, unstack(params)))
            self._raise_failure(writer.wait_until_finished)
        self._saving = None

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
        """(state, data_state, meta) of `step`, or of the newest.

        `abstract_state` has the state's structure, with `shape`, `dtype` and `sharding` at its leaves; the mesh may
        differ from the one the checkpoint was saved on. Raises `CheckpointError` if it does not fit.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder}: no checkpoint here")
        path = self.folder / str(step)
        require_intact(path)
        params, rest = _split(abstract_arrays(abstract_state))
        require_same(path / PARAMS, params)
        require_same(path / "opt_state", rest)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            opt_state=ocp.args.StandardRestore(rest),
            data_state=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        saved = self._manager.restore(step, args=items)
        flat = {PREFIX + name: array for name, array in saved["params"].items()} | saved["opt_state"]
        return _stacked(flat, abstract_state), saved["data_state"], saved["meta"]

    def restore_frozen(self, abstract_params: PyTree) -> PyTree:
        """The parameters that `save_frozen` wrote, given their structure as for `restore`."""
        path = self.folder / FROZEN
        if not abstract_params and not path.is_dir():
            return {}
        require_intact(path)
        arrays = abstract_arrays(abstract_params)
        require_same(path, arrays)
        with ocp.StandardCheckpointer() as reader:
            return _stacked(reader.restore(path, arrays), abstract_params)

    def wait(self) -> None:
        """Waits for the pending save; raises `CheckpointError` if it fails."""
        self._raise_failure(self._manager.wait_until_finished)
        self._saving = None

    def close(self) -> None:
        """Waits for the pending save, raises if it failed, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _unstacked(self, state: PyTree) -> dict[str, jax.Array]:
        if self._unstack is None:
            shardings = {name: leaf.sharding for name, leaf in abstract_arrays(state).items()}
            self._unstack = jax.jit(unstack, out_shardings=shardings)
        return self._unstack(state)

    def _raise_failure(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except SAVE_ERRORS as error:
            what = f"the checkpoint of step {self._saving}" if self._saving != FROZEN else "the frozen parameters"
            raise CheckpointError(
                f"{self.folder}: {what} could not be written ({error}); free some space or repair the folder and "
                f"run again: it continues from step {self.latest_step() or 0}"
            ) from error

    def _write_files(self) -> None:
        """Adds the list of files to a folder that is complete except for its rename; runs in Orbax's thread."""
        if jax.process_index() == 0:
            (path,) = self.folder.glob(f"{self._saving}{UNFINISHED}*")
            write_files(path)


def _split(flat: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters by their canonical names, all else by its name in the state)."""
    params = {name.removeprefix(PREFIX): leaf for name, leaf in flat.items() if name.startswith(PREFIX)}
    return params, {name: leaf for name, leaf in flat.items() if not name.startswith(PREFIX)}


def _stacked(flat: dict[str, jax.Array], like: PyTree) -> PyTree:
    """The arrays as a tree with the structure and shardings of `like`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    return jax.jit(partial(stack_like, like=shapes), out_shardings=shardings)(flat)
