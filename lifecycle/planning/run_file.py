"""The part of a run's file that a train step needs: the model, the mesh and the training stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, SerializeAsAny, model_validator

from lifecycle.core.config import ConfigError, Section, load_config
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.dial import fill
from lifecycle.training.objectives.registry import objective_kind


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
    """One train step: the first training stage of a run's file."""

    model: ModelConfig
    mesh: MeshConfig
    train: TrainConfig
    section: str  # the file's section with the stage's settings


def read_step(path: Path, overrides: Iterable[str] = ()) -> StepConfig:
    """Reads the first training stage from the file of a run with one model.

    Raises `ConfigError` for an unreadable file, or if that stage does not train on token or chat rows.
    """
    run = load_config(_RunFile, path, overrides)
    name, train = next(iter(run.train.items()))
    if (rows := objective_kind(train.objective).rows) == "pairs":
        raise ConfigError(f"{path}: train.{name} learns from {rows} ({train.objective}); put a stage of tokens first")
    return StepConfig(run.model, run.mesh, train, f"train.{name}")
