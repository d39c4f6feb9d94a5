"""Rewards of a run: what scores completions, with weights, from a run file or from Python.

    rewards:
      - {name: maths, answer: solution}                  # a verifier (`evals/verifiers/`), with its settings
      - {function: my_rewards.py:brevity, weight: 0.1}   # TRL's signature: f(prompts, completions, **columns) -> list
      - {name: soft_overlong, max_completion_len: 256, soft_punish_cache: 64}

A completion's total is the sum of weight times value over the rewards that say something of it, as in TRL's
GRPOTrainer; nothing is normalised here. A verifier that exceeds its limits gives 0, counted by reason; a function that
raises, or returns anything but one finite number or None per completion, ends the run with its name and the row.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.evals.verifiers.registry import VERIFIERS
from lifecycle.rl.batch import RewardBatch, RewardError, Scores, shown
from lifecycle.rl.functions import FunctionReward
from lifecycle.rl.gym import GymReward
from lifecycle.rl.judge import JudgeReward
from lifecycle.rl.reward import FUNCTION, Logged, RewardConfig, register_reward, register_verifier
from lifecycle.rl.shaping import ColumnReward, CosineMaths, RepetitionPenalty, SoftOverlong, Tags, ThinkFormat

for _verifier in VERIFIERS.values():
    register_verifier(_verifier)
register_reward(FUNCTION, FunctionReward)
register_reward("column", ColumnReward)
register_reward("think_format", ThinkFormat)
register_reward("tags", Tags)
register_reward("soft_overlong", SoftOverlong)
register_reward("repetition_penalty", RepetitionPenalty)
register_reward("cosine_maths", CosineMaths)
register_reward("judge", JudgeReward)
register_reward("reasoning_gym", GymReward)


class Rewards:
    """The rewards of a run. Making one imports the functions' files, and raises `ConfigError` for names that repeat."""

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        if not configs:
            raise ConfigError("rewards: at least one is needed, such as {name: maths}")
        self.configs = tuple(configs)
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise ConfigError(f"rewards: two are called {repeated[0]!r}; give one of them a `label`")

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return [config.log_name for config in self.configs]

    @property
    def columns(self) -> set[str] | None:
        """All columns that they read; None if a function takes every column."""
        read = [config.columns for config in self.configs]
        return None if None in read else {name for names in read for name in names or ()}

    def fingerprint(self) -> list[dict[str, Any]]:
        """What decides the totals, JSON-ready, for a stage's key."""
        return [config.fingerprint | {"weight": config.weight} for config in self.configs]

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """The first fault that a reward finds in a row."""
        return next(filter(None, (config.row_problem(columns) for config in self.configs)), "")

    def score(self, batch: RewardBatch) -> Scores:
        """Scores completions; raises `RewardError` as the module says."""
        for place in range(len(batch)):
            if problem := self.row_problem(batch.row(place)):
                raise RewardError(f"{problem}; the row's prompt: {shown(batch.prompts[place])}")
        logged = Logged()
        with ThreadPoolExecutor(len(self.configs)) as threads:
            found = {c.log_name: threads.submit(c.score, batch, logged) for c in self.configs if c.overlaps}
            own = {c.log_name: c.score(batch, logged) for c in self.configs if not c.overlaps}
        verdicts = {name: found[name].result() if name in found else own[name] for name in self.names}
        values = {name: [math.nan if v.score is None else v.score for v in found] for name, found in verdicts.items()}
        faults = {name: Counter(v.fault for v in found if v.fault) for name, found in verdicts.items()}
        weights = [config.weight for config in self.configs]
        totals = [_total(weights, row) for row in zip(*values.values(), strict=True)]
        return Scores(values, totals, {name: one for name, one in faults.items() if one}, logged.extra, logged.metrics)


def _total(weights: Sequence[float], values: Sequence[float]) -> float:
    """The weighted sum of the values that are there; NaN if none is."""
    there = [weight * value for weight, value in zip(weights, values, strict=True) if not math.isnan(value)]
    return math.fsum(there) if there else math.nan
