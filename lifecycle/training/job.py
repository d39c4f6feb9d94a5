"""A training job: everything a training run is given."""

from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from lifecycle.core.typing import PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.training.batches import BatchSource
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.objective import Objective

CHECKPOINTS = "checkpoints"  # a folder in a job's `out`


@dataclass(frozen=True)
class TrainJob:
    """One training run: model, settings, mesh, objective, batches, initial weights, and the folder for its output."""

    model: ModelConfig
    train: TrainConfig
    mesh: Mesh
    objective: Objective
    batches: BatchSource
    start: PRNGKeyArray | Params  # a key: fresh weights; parameters: the initial weights
    out: Path
