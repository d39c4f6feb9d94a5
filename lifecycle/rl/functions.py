"""The user's reward functions, in TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`.

A function gets by name what its signature asks for, with `**kwargs` everything: `prompts`, `completions`,
`completion_ids`, a list for each column of the rows, `trainer_state` (`global_step`, `max_steps`),
`log_extra(column, values)`, `log_metric(name, value)`, and `environments` where the run has some. It may be `async`.
None says nothing of a completion. It is code of the user's own, run in this process: it may do what the user may.
"""

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Annotated, Any

from pydantic import Field

from lifecycle.core.config import nearest
from lifecycle.evals.verifiers.base import Verdict
from lifecycle.rl.batch import RewardBatch, RewardError, shown
from lifecycle.rl.loading import UserCode
from lifecycle.rl.reward import FUNCTION, Logged, RewardConfig

OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


class FunctionReward(RewardConfig):
    """A function of the user's: `FILE.py:function`, or `package.module:function`."""

    name: str = FUNCTION
    function: Annotated[
        str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$", description="FILE.py:function or package.module:function")
    ]

    @property
    def log_name(self) -> str:
        """The function's own name, unless there is a label."""
        return self.label or self.function.rpartition(":")[2]

    @cached_property
    def code(self) -> UserCode:
        """The function's place; raises `ConfigError` if it is not there, and runs nothing of it."""
        return UserCode.named(self.function, "reward")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The function's name and its file's content; what the file imports is not part of it."""
        return {"function": self.code.name, "sha256": self.code.sha256}

    @cached_property
    def call(self) -> Callable[..., Any]:
        """The function, imported."""
        return self.code.load()

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that its signature names; None if it takes all."""
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values()):
            return None
        return tuple(name for name in self._parameters if name not in OURS)

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """A column that the function asks for, and the row lacks."""
        for one in self._parameters.values():
            is_needed = one.default is one.empty and one.kind in NAMED and one.name not in OURS
            if is_needed and one.name not in columns:
                return f"no column {one.name!r} for the reward {self.function}{nearest(one.name, columns)}"
        return ""

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """The function's values, checked."""
        try:
            values = self._values(batch, logged)
        except Exception as error:  # of the user's code: whatever it is, the row that it fails on is told
            raise RewardError(f"reward {self.function} raised {_said(error)}{self._failing_row(batch)}") from error
        if not isinstance(values, Sequence) and not hasattr(values, "__array__"):
            raise RewardError(f"reward {self.function} returned {type(values).__name__}, expected a list of numbers")
        if len(values) != len(batch):
            raise RewardError(f"reward {self.function} returned {len(values)} values for {len(batch)} completions")
        return [Verdict(self._checked(value, batch, place)) for place, value in enumerate(values)]

    def _values(self, batch: RewardBatch, logged: Logged) -> Any:
        offered = {
            "prompts": list(batch.prompts), "completions": list(batch.completions),
            "completion_ids": [list(ids) for ids in batch.completion_ids], "trainer_state": batch.state,
            "log_extra": logged.extra.__setitem__, "log_metric": logged.metrics.__setitem__,
        }  # fmt: skip
        offered |= {name: list(column) for name, column in batch.columns.items()}
        if batch.environments is not None:
            offered["environments"] = list(batch.environments)
        taken = self.columns
        given = offered if taken is None else {n: v for n, v in offered.items() if n in self._parameters}
        result = self.call(**given)
        return _awaited(result) if inspect.isawaitable(result) else result

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.call).parameters

    def _failing_row(self, batch: RewardBatch) -> str:
        """The first completion on which the function fails alone, in words."""
        for place in range(len(batch)):
            try:
                self._values(batch.alone(place), Logged())
            except Exception as error:  # as in `score`
                return f"; on completion {place} alone too, {_said(error)}: {_shown_row(batch, place)}"
        return "; on no completion alone"

    def _checked(self, value: Any, batch: RewardBatch, place: int) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, Real) or (
            type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        )
        if not is_number or not math.isfinite(value):
            what = f"{value!r} ({type(value).__name__})"
            raise RewardError(
                f"reward {self.function} returned {what} for completion {place}, expected a finite number, or None: "
                f"{_shown_row(batch, place)}"
            )
        return float(value)


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _shown_row(batch: RewardBatch, place: int) -> str:
    columns = {name: shown(str(column[place])) for name, column in batch.columns.items()}
    return f"prompt {shown(batch.prompts[place])!r}, completion {shown(batch.completions[place])!r}, columns {columns}"


def _awaited(coroutine: Any) -> Any:
    """The result of a coroutine, in a thread of its own: this one may run an event loop."""
    outcome: list[Any] = []

    async def finish() -> Any:
        return await coroutine

    def run() -> None:
        try:
            outcome.append((asyncio.run(finish()), None))
        except BaseException as error:  # raised again by the caller
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
