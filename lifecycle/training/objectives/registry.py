"""The objectives by name: the settings each takes, the rows it reads, and where its formula is.

A config is read without JAX, so formulas are named here and imported only when they run. What must hold: a name has one
objective. Other packages add theirs with `register`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lifecycle.core.config import ConfigError, nearest
from lifecycle.training.config import SETTINGS, TrainConfig
from lifecycle.training.distilling import DistillationConfig, OfflineDistillationConfig
from lifecycle.training.drafting import EagleConfig
from lifecycle.training.likelihood import NextTokenConfig, SftConfig
from lifecycle.training.preference import (
    CpoConfig,
    DpoConfig,
    KtoConfig,
    OrpoConfig,
    ProcessRewardModelConfig,
    RewardModelConfig,
)

SEGMENTS = {"pairs": 2, "labelled": 1, "prompts": 1}  # kinds of rows that are groups of segments, and how many
ROWS = ("tokens", "chat", "steps", "taught", *SEGMENTS)  # kinds of rows that a stage can read


@dataclass(frozen=True)
class ObjectiveKind:
    """An objective, as a training stage sees it.

    `settings` is the stage's section, with the objective's own fields. `rows` is one of `ROWS`. `formula` is
    `package.module:function`, a function of the settings, of likelihoods (`objectives/likelihoods.py`, over tokens or
    over segments according to `rows`) and of the context. `context` is named in the same way: a function of the
    settings and of likelihoods to totals over the batch, for settings that say `needs_context`. `models` lists the
    settings that name a model which the objective needs beside its own: another stage, or a bundle. One that
    `runs_model` is a function of model and settings to an `Objective`.
    """

    name: str
    settings: type[TrainConfig]
    rows: str
    formula: str
    context: str | None = None
    models: tuple[str, ...] = ()
    runs_model: bool = False

    def __post_init__(self) -> None:
        assert self.rows in ROWS, f"objective {self.name!r}: rows={self.rows!r}, known: {', '.join(ROWS)}"

    def load(self) -> Callable[..., Any]:
        """The formula, imported."""
        return _imported(self.formula)

    def load_context(self, train: TrainConfig) -> Callable[..., Any] | None:
        """The function of the context, imported; None if a stage with these settings needs none."""
        return _imported(self.context) if self.context is not None and train.needs_context else None


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


_KINDS: dict[str, ObjectiveKind] = {}


def register(kind: ObjectiveKind) -> None:
    """Adds an objective. Raises `ValueError` for a name that is taken."""
    if _KINDS.setdefault(kind.name, kind) != kind:
        raise ValueError(f"objective {kind.name!r} is registered already, with {_KINDS[kind.name].formula}")
    SETTINGS[kind.name] = kind.settings


def objective_kind(name: str) -> ObjectiveKind:
    """The objective of this name; raises `ConfigError`, with the nearest name, for an unknown one."""
    if name not in _KINDS:
        raise ConfigError(f"objective {name!r} is not known{nearest(name, _KINDS)}")
    return _KINDS[name]


def objective_names() -> tuple[str, ...]:
    """All registered names, in the order of registration."""
    return tuple(_KINDS)


PACKAGE = "lifecycle.training.objectives"
register(ObjectiveKind("next_token", NextTokenConfig, "tokens", f"{PACKAGE}.next_token:next_token"))
register(ObjectiveKind("sft", SftConfig, "chat", f"{PACKAGE}.sft:sft"))
register(ObjectiveKind("dpo", DpoConfig, "pairs", f"{PACKAGE}.dpo:dpo", f"{PACKAGE}.dpo:of_batch"))
register(ObjectiveKind("orpo", OrpoConfig, "pairs", f"{PACKAGE}.orpo:orpo", f"{PACKAGE}.preference:counts"))
register(ObjectiveKind("cpo", CpoConfig, "pairs", f"{PACKAGE}.cpo:cpo", f"{PACKAGE}.preference:counts"))
register(ObjectiveKind("kto", KtoConfig, "labelled", f"{PACKAGE}.kto:kto", f"{PACKAGE}.kto:of_batch"))
register(ObjectiveKind("reward_model", RewardModelConfig, "pairs", f"{PACKAGE}.reward_model:reward_model"))
register(
    ObjectiveKind(
        "distillation", DistillationConfig, "chat", f"{PACKAGE}.distillation:distillation", models=("teacher",)
    )
)
register(
    ObjectiveKind("offline_distillation", OfflineDistillationConfig, "taught", f"{PACKAGE}.distillation:distillation")
)
register(
    ObjectiveKind(
        "process_reward_model",
        ProcessRewardModelConfig,
        "steps",
        f"{PACKAGE}.process_reward_model:process_reward_model",
    )
)
register(ObjectiveKind("eagle", EagleConfig, "chat", f"{PACKAGE}.eagle:eagle", runs_model=True))
