"""Tasks of `reasoning-gym` (an extra): rows made from seeds, and the reward `reasoning_gym`, by the task's own scorer.

Each row has a seed of its own, and is the first item of the task with that seed (item i of seed s would be drawn from
s + i, in most tasks). Seeds of training begin at 0 and those held out at 2**30, so rows of both never meet. A row
carries what makes it, not the entry: the scorer makes the entry again. Both do so in processes of `core/isolation/`,
whose hashes and random numbers begin alike: of 105 tasks 5 make other entries with another PYTHONHASHSEED. An answer
that a scorer evaluates could tamper with its own score, and with nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import Field

from lifecycle.core.config import ConfigError
from lifecycle.core.isolation.confine import Limits
from lifecycle.core.isolation.pool import Result
from lifecycle.core.progress import Progress
from lifecycle.evals.verifiers.base import Verdict, shared_pool
from lifecycle.rl.batch import RewardBatch
from lifecycle.rl.reward import Logged, RewardConfig
from lifecycle.text.config import GymTask

HELD_OUT_SEEDS = 1 << 30  # some tasks take seeds of 32 bits
LIMITS = Limits(cpu_s=5, wall_s=30.0, memory_bytes=4 << 30)
COLUMN = "reasoning_gym"
AT_ONCE = 1024  # rows that are made between two signs of life


def installed_version() -> str:
    """The version of reasoning-gym here, on which questions and scores depend; raises `ConfigError` without it."""
    try:
        return version("reasoning-gym")
    except PackageNotFoundError:
        raise ConfigError("reasoning-gym is not installed: pip install 'lifecycle[reasoning-gym]'") from None


def gym_rows(task: GymTask, progress: Progress, *, is_held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Rows `prompt` (messages), `answer` (one right answer) and `reasoning_gym` (what the scorer needs).

    Raises `ConfigError` for an unknown task or setting, or without the extra.
    """
    installed_version()
    count, first = (task.held_out, HELD_OUT_SEEDS) if is_held_out else (task.size, 0)
    settings = json.dumps(task.settings, sort_keys=True)
    system = [] if task.system is None else [{"role": "system", "content": task.system}]
    seeds = range(first + task.seed, first + task.seed + count)
    pool = shared_pool("lifecycle.rl.gym_program:make", LIMITS)
    for begin in range(0, count, AT_ONCE):
        items = [{"task": task.task, "settings": settings, "seed": seed} for seed in seeds[begin : begin + AT_ONCE]]
        for item, result in zip(items, pool.map(items), strict=True):
            entry = _made(item, result)
            prompt = [*system, {"role": "user", "content": entry["question"]}]
            yield {"prompt": prompt, "answer": entry["answer"], COLUMN: item}
        progress.update(begin + len(items))


def _made(item: Mapping[str, Any], result: Result) -> dict[str, str]:
    if not result.failure and "refused" not in result.value:
        return result.value
    why = result.value["refused"] if result.value else f"it cannot make an item: {result.failure}"
    raise ConfigError(f"rows.reasoning_gym, {item['task']}, seed {item['seed']}: {why}")


class GymReward(RewardConfig):
    """The task's own score, from 0 to 1, of what stands between the tags of `tag`, the last time."""

    name: str = "reasoning_gym"
    tag: Annotated[str | None, Field(pattern=r"^\w+$", description="none: all of the completion is the answer")] = (
        "answer"
    )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings, and the version that scores."""
        return super().fingerprint | {"version": installed_version()}

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
