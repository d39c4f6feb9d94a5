"""The environments of a stage's episodes: made once, used again, and asked all at once, in threads.

They live in the process that writes; the others of its job are told what they say, which is JSON. What must hold: all
processes see the same messages, so they sample the same turns; what one environment does wrong is told of that one.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from lifecycle.core.deadlines import Failed, in_threads
from lifecycle.core.distributed import is_writer
from lifecycle.rl.environment import Environment, EpisodeError, Message, Step, Tool
from lifecycle.rl.openings import first_fault, json_fault, shown_tools
from lifecycle.rl.tools import ToolEnvironment
from lifecycle.training.checkpoints.agreement import by_writer

AT_ONCE = 32  # environments that work at a time


@dataclass(frozen=True)
class Said:
    """What an environment says: as `Step`, and the tools that the model is told of. `calls`: of tools in the episode so
    far, and how many of them failed; None for an environment that counts none. `fault`: why it says nothing."""

    messages: Sequence[Message] = ()
    reward: float = 0.0
    done: bool = False
    tools: Sequence[Tool] = ()
    calls: Sequence[int] | None = None
    fault: str = ""


class Environments:
    """A stage's environments by their places."""

    def __init__(self, make: Callable[[], Environment], timeout_s: float) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._made: list[Environment] = []

    def at(self, place: int) -> Environment | None:
        """The environment itself; None in the processes that have none."""
        return self._made[place] if is_writer() else None

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Said]:
        """What the first environments, one for each row, say first."""

        def begun() -> list[dict[str, Any]]:
            self._made += [self._new() for _ in range(len(rows) - len(self._made))]
            each = self._made[: len(rows)]
            for environment, seed in zip(each, seeds, strict=True):
                environment.seed = seed
            works = [partial(one.reset, deepcopy(dict(row))) for one, row in zip(each, rows, strict=True)]
            found = self._asked(range(len(rows)), works)
            return [_first(result, one, row) for result, one, row in zip(found, each, rows, strict=True)]

        return [Said(**plain) for plain in by_writer(begun)]

    def step(self, places: Sequence[int], answers: Sequence[Message]) -> list[Said]:
        """What the environments at these places answer."""

        def gone_on() -> list[dict[str, Any]]:
            each = [self._made[place] for place in places]
            works = [partial(one.step, deepcopy(answer)) for one, answer in zip(each, answers, strict=True)]
            found = self._asked(places, works)
            return [_next(result, one) for result, one in zip(found, each, strict=True)]

        return [Said(**plain) for plain in by_writer(gone_on)]

    def close(self) -> None:
        """Closes them; one that fails to close is left."""
        in_threads([environment.close for environment in self._made], self._timeout_s, AT_ONCE)
        self._made = []

    def _asked(self, places: Sequence[int], works: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the works return. An environment that is late still works on its episode: another takes its place."""
        results = in_threads(works, self._timeout_s, AT_ONCE)
        for place, result in zip(places, results, strict=True):
            if isinstance(result, Failed) and result.is_late:
                self._made[place] = self._new()
        return results

    def _new(self) -> Environment:
        [made] = in_threads([self._make], self._timeout_s, 1)
        if isinstance(made, Failed):
            raise EpisodeError(f"episodes: no environment can be made: {made.why}")
        return made


def _first(result: Any, environment: Environment, row: Mapping[str, Any]) -> dict[str, Any]:
    """`Said` of what `reset` returned, JSON-ready."""
    if fault := _fault(result, first_fault):
        return {"fault": fault}
    tools = shown_tools(environment, row)
    if fault := json_fault("the environment's tools", tools):
        return {"fault": fault}
    return {"messages": _plain(result), "tools": _plain(tools), "calls": _calls(environment)}


def _next(result: Any, environment: Environment) -> dict[str, Any]:
    """`Said` of what `step` returned, JSON-ready."""
    calls = {"calls": _calls(environment)}
    if fault := _fault(result, _step_fault):
        return calls | {"fault": fault}
    messages = [] if result.done else _plain(result.messages)
    return calls | {"messages": messages, "reward": float(result.reward), "done": bool(result.done)}


def _fault(result: Any, of_value: Callable[[Any], str]) -> str:
    return result.why if isinstance(result, Failed) else of_value(result)


def _plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy that nothing else changes."""
    return json.loads(json.dumps(messages))


def _calls(environment: Environment) -> list[int] | None:
    if not isinstance(environment, ToolEnvironment):
        return None
    counts: Counter[str] = environment.counts
    return [counts["calls"], counts["failed"]]


def _step_fault(step: Any) -> str:
    """Why an environment's answer is none; empty if it is one."""
    if not isinstance(step, Step):
        return f"step returned {type(step).__name__}, expected Step"
    if not _is_number(step.reward):
        return f"step's reward is {step.reward!r}, expected a finite number"
    if step.done:
        return ""
    if not step.messages or not all(isinstance(message, dict) for message in step.messages):
        return "step has no list of messages to go on with, and is not done"
    is_models = any(message.get("role") == "assistant" for message in step.messages)
    return "step speaks as the assistant" if is_models else json_fault("step's messages", step.messages)


def _is_number(reward: Any) -> bool:
    try:
        return isinstance(reward, Real) and math.isfinite(reward)
    except OverflowError:  # an int beyond all floats
        return False
