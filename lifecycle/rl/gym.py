"""Tasks of `reasoning-gym` (an extra): rows made from seeds, and the reward `reasoning_gym`, by the task's own scorer.

Each row has a seed of its own, and is the first item of the task with that seed (item i of seed s would be drawn from
s + i, in most tasks). Seeds of training begin at 0 and those held out at 2**30, so rows of both never meet. A row
carries what makes it, not the entry: the scorer makes the entry again. An answer that a scorer evaluates could tamper
with its own score, and with nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.isolation.confine import Limits
from lifecycle.core.isolation.pool import Result
from lifecycle.evals.verifiers.base import Verdict, shared_pool
from lifecycle.rl.batch import RewardBatch
from lifecycle.rl.reward import Logged, RewardConfig

HELD_OUT_SEEDS = 1 << 30  # some tasks take seeds of 32 bits
LARGEST_SIZE = 1 << 28
LIMITS = Limits(cpu_s=5, wall_s=30.0, memory_bytes=4 << 30)
COLUMN = "reasoning_gym"
INSTRUCTION = "Give your answer inside <answer> and </answer>, and nothing else there."


class GymTask(Section):
    """One task: its name there (`leg_counting`), its own settings, and how many rows."""

    task: str
    settings: Annotated[
        dict[str, Any], Field(default_factory=dict, description="of the task, as reasoning-gym names them")
    ]
    size: Annotated[int, Field(ge=1, le=LARGEST_SIZE)] = 1000
    held_out: Annotated[int, Field(ge=0, le=LARGEST_SIZE, description="rows with seeds of their own")] = 100
    seed: Annotated[
        int, Field(ge=0, lt=1 << 28, description="rows of another seed differ, if it is size or more away")
    ] = 0
    system: Annotated[str | None, Field(description="the system message; none: there is none")] = INSTRUCTION

    def rows(self, *, is_held_out: bool = False) -> Iterator[dict[str, Any]]:
        """Rows `prompt` (messages), `answer` (one right answer) and `reasoning_gym` (what the scorer needs).

        Raises `ConfigError` for an unknown task or setting, or without the extra.
        """
        count, first = (self.held_out, HELD_OUT_SEEDS) if is_held_out else (self.size, 0)
        settings = json.dumps(self.settings, sort_keys=True)
        for seed in range(first + self.seed, first + self.seed + count):
            entry = _entry_of(self.task, settings, seed)
            system = [] if self.system is None else [{"role": "system", "content": self.system}]
            made_from = {"task": self.task, "settings": settings, "seed": seed}
            yield {
                "prompt": [*system, {"role": "user", "content": entry["question"]}],
                "answer": "" if entry["answer"] is None else str(entry["answer"]),
                COLUMN: made_from,
            }


class GymReward(RewardConfig):
    """The task's own score, from 0 to 1, of what stands between the tags of `tag`, the last time."""

    name: str = "reasoning_gym"
    tag: Annotated[str | None, Field(pattern=r"^\w+$", description="none: all of the completion is the answer")] = (
        "answer"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row was made from."""
        return (COLUMN,)

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """A row that was not made here."""
        made_from = columns.get(COLUMN)
        known = isinstance(made_from, Mapping) and {"task", "settings", "seed"} <= made_from.keys()
        return "" if known else f"the reward {self.log_name} needs rows of reasoning-gym, with the column {COLUMN!r}"

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """The scorer's values; 0 and a fault where the scorer itself fails."""
        del logged
        answers = [output.strip() if self.tag is None else tagged(output, self.tag) for output in batch.outputs]
        items = [
            {"answer": answer, **made_from}
            for answer, made_from in zip(answers, batch.columns[COLUMN], strict=True)
            if answer is not None
        ]
        results = iter(shared_pool("lifecycle.rl.gym_program:score", LIMITS, is_fresh=True).map(items))
        return [Verdict(0.0) if answer is None else _verdict(next(results)) for answer in answers]


def _verdict(result: Result) -> Verdict:
    return Verdict(0.0, result.failure) if result.failure else Verdict(min(1.0, max(0.0, result.value)))


def tagged(output: str, tag: str) -> str | None:
    """What stands between the last opening tag and the end tag behind it; None if there is no such pair."""
    before, opening, rest = output.rpartition(f"<{tag}>")
    del before
    inside, closing, _ = rest.partition(f"</{tag}>")
    return inside.strip() if opening and closing else None


def _entry_of(task: str, settings: str, seed: int) -> dict[str, Any]:
    try:
        from lifecycle.rl.gym_program import entry_of  # reasoning-gym takes five seconds to import
    except ImportError as error:
        raise ConfigError(f"{error}: for reasoning-gym, pip install 'lifecycle[reasoning-gym]'") from None
    return entry_of(task, settings, seed)[1]
