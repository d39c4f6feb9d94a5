"""Compares two replicas at intervals."""

import jax
from jax.sharding import Mesh

from lifecycle.core.typing import PyTree
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.replay import Local, make_replay, suspects
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState


class CorruptionError(ValueError):
    """Two devices have different results for the same rows and weights."""


class Replay(Hook):
    """Every `every` steps, the next batch's loss and gradients are computed by two replicas each, which costs two
    steps. Raises `CorruptionError`, which names the devices."""

    def __init__(self, every: int, local: Local, mesh: Mesh, shardings: TrainState, held: PyTree) -> None:
        """`held`: as in `make_replay`."""
        self._every, self._program = every, make_replay(local, mesh, shardings, held)

    def after_step(self, run: TrainingRun) -> None:
        """Replays the next step, if it is time."""
        if run.is_last or run.step % self._every:
            return
        with off_the_clock(run, "replay"):
            sums = jax.device_get(self._program((run.state.trained, run.state.frozen | run.job.held), run.batch))
            if devices := suspects(sums, run.job.mesh):
                raise CorruptionError(
                    f"after step {run.step}, devices that computed the same rows with the same weights have different "
                    f"bits: {', '.join(f'{device} of process {device.process_index}' for device in devices)}. Leave "
                    "them out, test their hosts, and go on from a checkpoint before the last replay without a finding"
                )
