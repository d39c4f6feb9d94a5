"""What every reward is: settings with a weight, and a function from a batch of completions to verdicts."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model

from lifecycle.core.config import Section, VariantSection, nearest
from lifecycle.core.numbers import Float32
from lifecycle.evals.verifiers.base import Verdict, Verifier
from lifecycle.rl.batch import RewardBatch

FUNCTION = "function"


class Logged:
    """What rewards log beside their values: TRL's `log_extra` and `log_metric`."""

    def __init__(self) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}


class RewardConfig(VariantSection):
    """One reward: `name` is that of a built-in one, or `function` names one of the user's."""

    variant_key: ClassVar[str] = "name"

    name: str
    weight: Annotated[Float32, Field(description="of its values in the sum")] = 1.0
    label: Annotated[str | None, Field(min_length=1, description="its name in logs; by default its own")] = None

    @classmethod
    def variants(cls) -> Mapping[str, type["RewardConfig"]]:
        """The registered rewards by name."""
        return _KINDS

    @classmethod
    def variant_of(cls, tree: Mapping[str, Any]) -> type[Section]:
        """As of any variant; `function` alone selects a function."""
        return super().variant_of({**tree, "name": FUNCTION} if FUNCTION in tree and "name" not in tree else tree)

    @property
    def log_name(self) -> str:
        """Its name in logs and scores."""
        return self.label or self.name

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that it reads; None for a function that takes them all."""
        return ()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides its values, JSON-ready: its settings, and the content of the user's file."""
        return self.model_dump(mode="json", exclude={"weight", "label"})

    @property
    def overlaps(self) -> bool:
        """Whether it may be found in a thread beside other rewards: it waits for processes or a server."""
        return True

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns, which no completion could mend; empty if there is none."""
        del columns
        return ""

    @abstractmethod
    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """A verdict per completion."""
        raise NotImplementedError


class VerifierReward(RewardConfig):
    """A verifier of `evals/verifiers/` as a reward, with its settings beside the weight."""

    kind: ClassVar[type[Verifier]]

    @cached_property
    def checker(self) -> Verifier:
        """The verifier with these settings."""
        settings = self.model_dump(by_alias=True, include=set(self.kind.model_fields))
        return self.kind.model_validate(settings)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        return self.checker.columns

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """A right answer that cannot be one."""
        missing = next((name for name in self.columns if name not in columns), None)
        if missing is not None:
            return f"no column {missing!r} for the reward {self.log_name}{nearest(missing, columns)}"
        problem = self.checker.problem(self.checker.gold(columns))
        return f"reward {self.log_name}: {problem}" if problem else ""

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """The verifier's verdicts."""
        del logged
        return self.checker.verdicts(
            batch.outputs, [self.checker.gold(batch.row(place)) for place in range(len(batch))]
        )


_KINDS: dict[str, type[RewardConfig]] = {}


def register_reward(name: str, kind: type[RewardConfig]) -> None:
    """Adds a reward; raises `ValueError` for a name that is taken."""
    if _KINDS.setdefault(name, kind) is not kind:
        raise ValueError(f"the reward {name!r} is registered already")


def register_verifier(kind: type[Verifier]) -> None:
    """Offers a verifier as a reward of its name."""
    made: Any = create_model(f"{kind.__name__}Reward", __base__=(VerifierReward, kind), __doc__=kind.__doc__)
    made.kind = kind
    register_reward(kind.verifier, made)
