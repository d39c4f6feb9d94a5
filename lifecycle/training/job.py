"""A training job: everything a training run is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lifecycle.core.typing import PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.training.batches import BatchSource
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.objective import Objective

CHECKPOINTS = "checkpoints"  # a folder in a job's `out`


@dataclass(frozen=True)
class Continued:
    """The checkpoint of another run, in its folder of checkpoints, from which a job goes on as that run would."""

    folder: Path
    step: int


# A key: fresh weights; parameters: the initial weights.
type Origin = PRNGKeyArray | Params | Continued


@dataclass(frozen=True)
class TrainJob:
    """One training run: model, settings, mesh, objective, batches, initial weights, and the folder for its output."""

    model: ModelConfig
    train: TrainConfig
    mesh: Mesh
    objective: Objective
    batches: BatchSource
    start: Origin
    out: Path
    spent_s: Mapping[str, float] = field(default_factory=dict)  # on making this job, by cause (`core/startup.py`)
    facts: Mapping[str, Any] = field(default_factory=dict)  # about the job, for whoever reads its time sheet
    held: Params = field(default_factory=dict)  # other models' parameters, as the objective's `held` says
    to: Destination | None = None  # where checkpoints are kept if the processes have folders of their own
    owns_start: bool = False  # nobody else needs the initial weights: they leave the devices once the state is made

    @property
    def first_step(self) -> int:
        """The number of steps that another run has taken before."""
        return self.start.step if isinstance(self.start, Continued) else 0
