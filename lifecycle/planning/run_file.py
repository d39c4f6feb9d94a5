"""The part of a run's file that a train step needs: the model, the mesh and the training stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, SerializeAsAny, model_validator

import lifecycle.rl.config  # noqa: F401 - registers the objectives that learn from rewards
from lifecycle.core.config import ConfigError, Section, load_config, nearest
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.dial import fill


class _RunFile(Section):
    """The sections that planning reads; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    train: dict[str, SerializeAsAny[TrainConfig]] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:
        return fill(tree)[0]


@dataclass(frozen=True)
class StepConfig:
    """One train step of a run's file."""

    model: ModelConfig
    mesh: MeshConfig
    train: TrainConfig
    section: str  # the file's section with the stage's settings


def read_step(path: Path, overrides: Iterable[str] = (), stage: str | None = None) -> StepConfig:
    """Reads a training stage, by default the first, from the file of a run with one model.

    Raises `ConfigError` for an unreadable file, or a stage that it does not have.
    """
    run = load_config(_RunFile, path, overrides)
    name = next(iter(run.train)) if stage is None else stage
    if name not in run.train:
        raise ConfigError(f"{path}: no stage train.{name}{nearest(name, run.train)}")
    train = run.train[name]
    return StepConfig(train.trained(run.model), run.mesh, train, f"train.{name}")
