"""The objectives by name: the settings each takes, the rows it reads, and where its formula is.

A config is read without JAX, so formulas are named here and imported only when they run. What must hold: a name has one
objective. Other packages add theirs with `register`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lifecycle.core.config import ConfigError, nearest
from lifecycle.training.config import SETTINGS, DpoConfig, NextTokenConfig, OrpoConfig, SftConfig, TrainConfig
from lifecycle.training.drafting import EagleConfig

ROWS = ("tokens", "chat", "pairs")  # kinds of rows that a stage can read


@dataclass(frozen=True)
class ObjectiveKind:
    """An objective, as a training stage sees it.

    `settings` is the stage's section, with the objective's own fields. `rows` is one of `ROWS`. `formula` is
    `package.module:function`, a function of the settings and of likelihoods (`objectives/likelihoods.py`), over tokens
    or over pairs according to `rows`. With `needs_reference`, rows carry the log-probabilities of the stage's initial
    model. `models` lists the settings that name another stage whose model the objective needs.
    """

    name: str
    settings: type[TrainConfig]
    rows: str
    formula: str
    needs_reference: bool = False
    models: tuple[str, ...] = ()
    runs_model: bool = False

    def __post_init__(self) -> None:
        assert self.rows in ROWS, f"objective {self.name!r}: rows={self.rows!r}, known: {', '.join(ROWS)}"

    def load(self) -> Callable[..., Any]:
        """The formula, imported."""
        module, _, function = self.formula.partition(":")
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
register(ObjectiveKind("sft", SftConfig, "chat", f"{PACKAGE}.next_token:next_token"))
register(ObjectiveKind("dpo", DpoConfig, "pairs", f"{PACKAGE}.dpo:dpo", needs_reference=True))
register(ObjectiveKind("orpo", OrpoConfig, "pairs", f"{PACKAGE}.orpo:orpo"))
register(ObjectiveKind("eagle", EagleConfig, "chat", f"{PACKAGE}.eagle:eagle", runs_model=True))
