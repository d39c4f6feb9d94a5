"""The state in another run's checkpoint, for a run that goes on from there. That run's folder is only read.

All processes of the job make the same calls to load it.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lifecycle.training.checkpoints.arrays import abstract_arrays, require_same, stacked
from lifecycle.training.checkpoints.integrity import TOGETHER, CheckpointError, intact_step, steps_in
from lifecycle.training.checkpoints.items import OPT_STATE, PARAMS, by_item, joined
from lifecycle.training.checkpoints.reading import read_arrays

DATA_STATE = "data_state"


def require_step(folder: Path, step: int) -> None:
    """Raises `CheckpointError`, with the steps that are there, for a step whose checkpoint is not kept."""
    if step not in (there := steps_in(folder)):
        raise CheckpointError(
            f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, there)) or 'none'}. Choose one of "
            f"these; or keep more checkpoints (checkpoint.keep, checkpoint.keep_every), delete {folder.parent}, and "
            "it is trained again"
        )


def load_opt_state(folder: Path, step: int, like: Any) -> Any:
    """The optimizer's state after `step`. `like` has its structure, with shapes, dtypes and shardings; the mesh may
    differ from the one it was saved on. Raises `CheckpointError`."""
    path, wanted = intact_step(folder, step, TOGETHER), {OPT_STATE: like}
    items = by_item(abstract_arrays(wanted))
    del items[PARAMS]
    for item, arrays in items.items():
        require_same(path / item, arrays)
    flat = joined({item: read_arrays(path / item, arrays) for item, arrays in items.items()})
    return stacked(flat, wanted)[OPT_STATE]


def load_data_state(folder: Path, step: int) -> dict[str, Any]:
    """The state of the batches after `step`; raises `CheckpointError`."""
    path = intact_step(folder, step, TOGETHER)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(path / DATA_STATE)
