"""Rewards of a completion's form: its tags, its length, its repetitions. The values are those of `trl.rewards`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from lifecycle.core.config import nearest
from lifecycle.core.numbers import Float32
from lifecycle.evals.verifiers.base import Verdict, Verifier
from lifecycle.evals.verifiers.maths import Maths
from lifecycle.rl.batch import RewardBatch
from lifecycle.rl.reward import Logged, RewardConfig, VerifierReward


class ColumnReward(RewardConfig):
    """The number in a column, or nothing where it is None: what a row, an environment or another model says already."""

    name: str = "column"
    column: Annotated[str, Field(min_length=1)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def row_problem(self, columns: Mapping[str, Any]) -> str:
        """No column, or no number in it."""
        if self.column not in columns:
            return f"no column {self.column!r} for the reward {self.log_name}{nearest(self.column, columns)}"
        value = columns[self.column]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return "" if value is None or is_number else f"reward {self.log_name}: {value!r} is no finite number, nor None"

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """The column's numbers."""
        del logged
        return [Verdict(None if value is None else float(value)) for value in batch.columns[self.column]]


class ThinkFormat(RewardConfig):
    """1 for a completion that begins with a thought, closed, and opens no second one (`think_format_reward`)."""

    name: str = "think_format"
    opening: Annotated[str, Field(min_length=1)] = "<think>"
    closing: Annotated[str, Field(min_length=1)] = "</think>"

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """1 or 0."""
        del logged
        return [Verdict(float(self._is_formed(output))) for output in batch.outputs]

    def _is_formed(self, output: str) -> bool:
        rest = output.removeprefix(self.opening)
        return output.startswith(self.opening) and self.opening not in rest and self.closing in rest


class Tags(RewardConfig):
    """1 for a completion that is these tags in order, each once and closed, with nothing but space between them:
    `<think>...</think> <answer>...</answer>`."""

    name: str = "tags"
    tags: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+$")], ...], Field(min_length=1)]

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """1 or 0."""
        del logged
        return [Verdict(float(self._is_formed(output))) for output in batch.outputs]

    def _is_formed(self, output: str) -> bool:
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        if any(output.count(mark) != 1 for mark in marks):
            return False
        parts = re.split("|".join(map(re.escape, marks)), output)
        outside = parts[::2]
        return re.findall("|".join(map(re.escape, marks)), output) == marks and not any(map(str.strip, outside))


class SoftOverlong(RewardConfig):
    """0 up to `max_completion_len - soft_punish_cache` tokens, falling to -1 at `max_completion_len`, -1 beyond.

    DAPO (Yu et al. 2025), eq. 13; `get_soft_overlong_punishment`.
    """

    name: str = "soft_overlong"
    max_completion_len: Annotated[int, Field(ge=1, description="tokens")]
    soft_punish_cache: Annotated[int, Field(ge=0, description="tokens before the limit in which the value falls")]

    @model_validator(mode="after")
    def _cache_is_inside(self) -> Self:
        if self.soft_punish_cache > self.max_completion_len:
            raise ValueError("soft_punish_cache exceeds max_completion_len: the shortest completion would be punished")
        return self

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """Values from -1 to 0."""
        del logged
        return [Verdict(self._value(len(ids))) for ids in batch.completion_ids]

    def _value(self, length: int) -> float:
        free = self.max_completion_len - self.soft_punish_cache
        if length <= free:
            return 0.0
        return (free - length) / self.soft_punish_cache if length <= self.max_completion_len else -1.0


class RepetitionPenalty(RewardConfig):
    """`max_penalty` times the share of a completion's token n-grams that are repetitions.

    Yeo et al. 2025 (arXiv:2502.03373), appendix C.2; `get_repetition_penalty_reward`.
    """

    name: str = "repetition_penalty"
    ngram_size: Annotated[int, Field(ge=1)] = 3
    max_penalty: Annotated[Float32, Field(le=0)] = -1.0

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """Values from `max_penalty` to 0."""
        del logged
        return [Verdict(self._value(ids)) for ids in batch.completion_ids]

    def _value(self, ids: Sequence[int]) -> float:
        count = len(ids) - self.ngram_size + 1
        if count < 1:
            return 0.0
        different = len({tuple(ids[place : place + self.ngram_size]) for place in range(count)})
        repeated = 1 - different / count
        return repeated * self.max_penalty if repeated else 0.0


class CosineMaths(VerifierReward, Maths):
    """`maths`, scaled by length: right and short is best, wrong and short is worst.

    Yeo et al. 2025 (arXiv:2502.03373), appendix C.1; `get_cosine_scaled_reward`.
    """

    kind: ClassVar[type[Verifier]] = Maths
    name: str = "cosine_maths"
    max_len: Annotated[int, Field(ge=1, description="tokens")]
    min_value_wrong: Float32 = -1.0
    max_value_wrong: Float32 = -0.5
    min_value_correct: Float32 = 0.5
    max_value_correct: Float32 = 1.0

    def score(self, batch: RewardBatch, logged: Logged) -> list[Verdict]:
        """Values between the bounds of a right or a wrong answer, by length."""
        verdicts = super().score(batch, logged)
        return [self._scaled(verdict, len(ids)) for verdict, ids in zip(verdicts, batch.completion_ids, strict=True)]

    def _scaled(self, verdict: Verdict, length: int) -> Verdict:
        if verdict.score is None:
            return verdict
        low, high = (self.min_value_correct, self.max_value_correct) if verdict.score else (
            self.max_value_wrong, self.min_value_wrong)  # fmt: skip
        shape = 0.5 * (1.0 + math.cos(math.pi * min(length / self.max_len, 1.0)))
        return Verdict(low + (high - low) * shape, verdict.fault)
