"""Checkpoints by Orbax: written while training goes on, whole or not there at all, restored on any mesh.

A step's folder has four items: `params` and `opt_state` (arrays by canonical name, one per layer: `weights/names.py`,
so a checkpoint knows nothing of the scan's stacking), `data_state` and `meta` (JSON). Orbax writes under a temporary
name and renames at the end; before that, `files.json` is added with each file's size and SHA-256. What must hold: a
checkpoint that a reader accepts is bit by bit what was saved. One that is damaged is never used, and never stands in
the way of the one before it.
"""

import hashlib
import json
import logging
import shutil
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.artifact import write_text
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.typing import PyTree
from lifecycle.training.array_reader import ArrayReader
from lifecycle.weights.names import canonical_name, is_stacked, layer_names, stack_like, unstack

FILES = "files.json"
# Not in the list: itself, and the file into which Orbax writes its times after the rename (reading does not need it).
UNLISTED = (FILES, "_CHECKPOINT_METADATA")
UNFINISHED = ocp.path.atomicity_types.TMP_DIR_SUFFIX
PARAMS = "params."  # the name of a state's parameters begins with this
DAMAGED = ".damaged"  # what is appended to a damaged checkpoint's folder name
# What a failed write comes out as: the file system's error, or the storage library's.
SAVE_ERRORS = (OSError, ValueError, RuntimeError)


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """Whether Orbax wrote the record, or asyncio did about an exception of one of Orbax's tasks."""
    error = record.exc_info[1] if record.exc_info else None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)] if error else []
    return any("orbax" in Path(file).parts for file in (record.pathname, *files))


# Orbax logs one failed write a dozen times, each with its stack, and leaves the failures of the other writes to
# asyncio, which logs them when they are collected; the failure is raised here, once, with what to do.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(lambda record: not _is_of_orbax(record))

type Shapes = dict[str, jax.ShapeDtypeStruct]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another model, or that could not be written."""


class Checkpointer:
    """The checkpoints of one run, in `folder/<step>/`.

    One is due every `every` steps, and the last `keep` are kept. On opening, damaged checkpoints that are newer than
    the newest whole one are renamed to `<step>.damaged` and told to `progress`; if none is whole, `CheckpointError`.
    All processes of a job make the same calls.
    """

    def __init__(self, folder: Path, *, every: int, keep: int, progress: Progress | None = None) -> None:
        self.folder, self.every = folder.absolute(), every
        self.folder.mkdir(parents=True, exist_ok=True)
        _set_damaged_aside(self.folder, progress or Silent())
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,  # what a killed run left half-written
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_files),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._saving: int | None = None
        self._unstack: Any = None

    def latest_step(self) -> int | None:
        """The newest checkpoint's step, or None; a save under way counts once it is whole."""
        return max(_steps(self.folder), default=None)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps. Asked after each step: it raises `CheckpointError` as soon as
        the save under way has failed."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()
        return step % self.every == 0

    def save(self, step: int, state: PyTree, data_state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts to save `state`, a tree of arrays with `params` at its top; does nothing if `step` is saved already.

        When it returns, the arrays have been copied, so that `state` may be donated; until then the devices hold the
        layers' arrays twice. A save still under way is waited for; if it fails, `CheckpointError`.
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

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any], dict[str, Any]]:
        """(state, data_state, meta) of `step`, or of the newest.

        `abstract_state` has the state's structure, with `shape`, `dtype` and `sharding` at its leaves; the mesh may
        be another than the one the checkpoint was saved from. Raises `CheckpointError` when it does not fit.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder}: no checkpoint here")
        path = self.folder / str(step)
        _require_whole(path)
        params, rest = _split(_abstract(abstract_state))
        _require_same(path, "params", params)
        _require_same(path, "opt_state", rest)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            opt_state=ocp.args.StandardRestore(rest),
            data_state=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        found = self._manager.restore(step, args=items)
        flat = {PARAMS + name: array for name, array in found["params"].items()} | found["opt_state"]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), abstract_state)
        state = jax.jit(partial(stack_like, like=shapes), out_shardings=shardings)(flat)
        return state, found["data_state"], found["meta"]

    def wait(self) -> None:
        """Until the save under way is whole on disk; raises `CheckpointError` if it fails."""
        self._raise_failure(self._manager.wait_until_finished)
        self._saving = None

    def close(self) -> None:
        """Waits for the save under way, raises if it failed, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _unstacked(self, state: PyTree) -> dict[str, jax.Array]:
        if self._unstack is None:
            shardings = {name: leaf.sharding for name, leaf in _abstract(state).items()}
            self._unstack = jax.jit(unstack, out_shardings=shardings)
        return self._unstack(state)

    def _raise_failure(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except SAVE_ERRORS as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {self._saving} could not be written ({error}); "
                f"make room or mend the folder and run again: it goes on from step {self.latest_step() or 0}"
            ) from error

    def _write_files(self) -> None:
        """Adds the list of files to a step's folder that is complete but for its rename; in Orbax's thread."""
        if jax.process_index() == 0:
            (path,) = self.folder.glob(f"{self._saving}{UNFINISHED}*")
            write_text(path / FILES, json.dumps(_list_files(path), indent=1))


def saved_step(folder: Path) -> int:
    """The newest step that a run has saved in `folder`; 0 if there is none."""
    return max(_steps(folder), default=0)


def load_params(folder: Path, like: PyTree, step: int | None = None, shardings: PyTree | None = None) -> dict[str, Any]:
    """The parameters of `step`, or of the newest whole checkpoint of a run, without the optimizer's state.

    `like` and `shardings` have the parameters' structure, with shapes and with where they go; all processes of the job
    call alike. Without `shardings` the calling process reads alone, to its first device. Raises `CheckpointError`.
    """
    path = _whole_step(folder, step)
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = shardings if shardings is not None else jax.tree.map(lambda _: alone, like)
    shapes = _abstract(jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, places))
    _require_same(path, "params", shapes)
    with _reader(alone=shardings is None) as reader:
        flat = reader.restore(path / "params", shapes)
    return jax.jit(partial(stack_like, like=like), out_shardings=shardings)(flat)


def read_params(folder: Path, like: PyTree, step: int | None = None) -> ArrayReader:
    """The parameters of `step`, or of the newest whole checkpoint of a run, to be read one by one, without a device.

    `like` has the parameters' structure, with shapes and dtypes. Raises `CheckpointError`.
    """
    path = _whole_step(folder, step)
    _require_same(path, "params", _abstract(like))
    return ArrayReader(path / "params")


def _whole_step(folder: Path, step: int | None) -> Path:
    """The folder of a step, by default of the newest whole one; raises `CheckpointError` unless it is whole."""
    folder = folder.absolute()
    step = _newest_whole(folder) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: no checkpoint here")
    _require_whole(folder / str(step))
    return folder / str(step)


def _reader(alone: bool) -> ocp.StandardCheckpointer:
    """A reader for all processes of the job together, or for this one, which then meets none in Orbax's barriers."""
    if not alone or jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _split(flat: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters by their canonical names, all else by its name in the state)."""
    params = {name.removeprefix(PARAMS): leaf for name, leaf in flat.items() if name.startswith(PARAMS)}
    return params, {name: leaf for name, leaf in flat.items() if not name.startswith(PARAMS)}


def _abstract(tree: PyTree) -> Shapes:
    """Shapes, dtypes and shardings of `unstack(tree)`; a layer lies where its part of the stack lay."""
    flat: Shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_stacked(path, leaf):
            place = _without_first_axis(leaf.sharding)
            layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)
            flat |= dict.fromkeys(layer_names(path, leaf), layer)
        else:
            flat[canonical_name(path)] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return flat


def _without_first_axis(place: Sharding) -> Sharding:
    return NamedSharding(place.mesh, P(*place.spec[1:])) if isinstance(place, NamedSharding) else place


def _saved_shapes(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> (shape, dtype) of the arrays in one item."""
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(item).item_metadata
    return {name: (tuple(array.shape), array.dtype) for name, array in saved.items()}


def _require_same(path: Path, item: str, expected: Shapes) -> None:
    """Raises `CheckpointError`, naming the first array that differs: Orbax would cast or truncate."""
    saved = _saved_shapes(path / item)
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            told = [f"{x[0]} {x[1]}" if x else "absent" for x in (saved.get(name), wanted.get(name))]
            raise CheckpointError(
                f"{path}: {item} {name} is {told[0]}, this run has it as {told[1]}; the model or the optimizer was "
                "another: restore that config or start a new run"
            )


def _steps(folder: Path) -> list[int]:
    """Steps whose folder was renamed to its final name, ascending."""
    return sorted(int(path.name) for path in folder.glob("*/") if path.name.isdecimal())


def _list_files(path: Path) -> dict[str, list[Any]]:
    """Relative name -> [bytes, SHA-256] of all files below `path`."""
    files: dict[str, list[Any]] = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name not in UNLISTED:
            with open(file, "rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            files[str(file.relative_to(path))] = [file.stat().st_size, found]
    return files


def _damage(path: Path) -> str | None:
    """What is wrong with a step's folder, or None."""
    if not path.is_dir():
        return "no such checkpoint"
    if not (path / FILES).is_file():
        return f"no {FILES}"
    try:
        expected = json.loads((path / FILES).read_text(encoding="utf-8"))
    except ValueError:
        return f"{FILES} is not JSON"
    found = _list_files(path)
    for name, (size, content) in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]} bytes of {size}"
        if found[name][1] != content:
            return f"{name} has changed"
    return None


def _require_whole(path: Path) -> None:
    if (reason := _damage(path)) is not None:
        raise CheckpointError(f"{path}: {reason}; use another step or start a new run")


def _newest_whole(folder: Path, damaged: dict[int, str] | None = None) -> int | None:
    """The newest whole step, None if there is no step; newer ones go to `damaged` with the reason.

    Raises `CheckpointError` when there are steps and none is whole.
    """
    damaged = {} if damaged is None else damaged
    steps = _steps(folder)
    for step in reversed(steps):
        if (reason := _damage(folder / str(step))) is None:
            return step
        damaged[step] = reason
    if not steps:
        return None
    listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise CheckpointError(f"{folder}: no checkpoint is whole ({listed}); delete the folder to start anew")


def _set_damaged_aside(folder: Path, progress: Progress) -> None:
    """Renames damaged checkpoints newer than the newest whole one, so that a run can save those steps again."""
    damaged: dict[int, str] = {}
    newest = _newest_whole(folder, damaged)  # on every process, so that all fail alike
    _sync("checkpoints read")
    for step, reason in damaged.items():
        if jax.process_index() == 0:
            aside = folder / f"{step}{DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)  # the same step damaged once before
            (folder / str(step)).rename(aside)
        progress.note(f"{folder / str(step)}: damaged ({reason}); going on from step {newest}")
    _sync("damaged checkpoints renamed")


def _sync(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
