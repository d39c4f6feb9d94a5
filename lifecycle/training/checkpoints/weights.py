"""The parameters in a run's checkpoints, without the optimizer's state, for later stages.

A step's checkpoint has the trained parameters, and their average if the run keeps one: then readers get that. The run's
frozen ones are in the folder `frozen`, written once; readers get both.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.array_reader import ArrayReader
from lifecycle.training.checkpoints.arrays import Shapes, abstract_arrays, require_same, saved_shapes, stacked
from lifecycle.training.checkpoints.integrity import (
    ALONE,
    TOGETHER,
    View,
    files_in,
    intact_step,
    require_intact,
)
from lifecycle.training.checkpoints.items import weights_item
from lifecycle.training.checkpoints.reading import read_arrays
from lifecycle.weights.names import unstack

FROZEN = "frozen"


def hash_params(params: PyTree) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal exactly when the weights are bit-equal on any mesh."""
    total = hashlib.sha256()
    for name, array in unstack(params).items():
        host = np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
        total.update(f"{name} {host.dtype} {host.shape}\n".encode() + host.tobytes())
    return total.hexdigest()


def load_params(
    folder: Path,
    like: PyTree,
    step: int | None = None,
    shardings: PyTree | None = None,
    *,
    dtypes_of: PyTree | None = None,
    item: str | None = None,
) -> dict[str, Any]:
    """The parameters of `step`, or of a run's newest intact checkpoint.

    `like`, `shardings` and `dtypes_of` have the parameters' structure: how they were saved (in these dtypes, or in
    bfloat16 for float32), where they go, and in which dtypes if not those of `like`, converted as they are read.
    `item`: the step's item with them, by default the average if there is one. All processes of the job make the same
    call. Without `shardings` the calling process reads alone, onto its first device. Raises `CheckpointError`.
    """
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = shardings if shardings is not None else jax.tree.map(lambda _: alone, like)
    given = dtypes_of if dtypes_of is not None else like
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), given, targets)
    wanted = abstract_arrays(shapes)
    flat: dict[str, jax.Array] = {}
    view = TOGETHER if shardings is not None else ALONE
    for path, saved in _items(folder, step, abstract_arrays(like), view, item).items():
        part = {name: wanted[name] for name in saved}
        flat |= read_arrays(path, part) if shardings is not None else _read_alone(path, part)
    return stacked(flat, shapes)


def read_params(folder: Path, like: PyTree, step: int | None = None) -> ArrayReader:
    """A reader of the parameters of `step`, or of a run's newest intact checkpoint, one by one and without a device.

    `like` has the parameters' structure, with shapes and dtypes. Raises `CheckpointError`.
    """
    items = _items(folder, step, abstract_arrays(like), ALONE)
    return ArrayReader({name: item for item, arrays in items.items() for name in arrays})


def _items(folder: Path, step: int | None, arrays: Shapes, view: View, item: str | None = None) -> dict[Path, Shapes]:
    """The arrays in each item; raises `CheckpointError` unless all are present, undamaged and of these shapes. What
    else is in the checkpoint need not be here."""
    read = weights_item if item is None else lambda _: item
    path = intact_step(folder, step, view, read)
    weights, frozen = path / read(files_in(path) or ()), path.parent / FROZEN
    items = {weights: arrays}
    if frozen.is_dir():
        require_intact(frozen, view)
        names = saved_shapes(frozen).keys()
        items = {
            weights: {name: shape for name, shape in arrays.items() if name not in names},
            frozen: {name: shape for name, shape in arrays.items() if name in names},
        }
    for part, expected in items.items():
        require_same(part, expected, is_widened=True)
    return items


def _read_alone(item: Path, wanted: Shapes) -> dict[str, jax.Array]:
    """The arrays of one item, read by this process alone, which skips Orbax's barriers."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    with ocp.StandardCheckpointer(multiprocessing_options=options) as reader:
        return reader.restore(item, wanted)
