"""Tasks scored by the likelihoods of given continuations, without generating anything.

Such a task says what it asks of a model, and turns the scores into its result. So the evaluation asks batch by batch,
and a training run asks the same again and again (`evals/measurement.py`).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.results import EvalResult
from lifecycle.evals.scoring import in_order_of_length
from lifecycle.evals.subject import Encoder, Pair, Subject
from lifecycle.evals.tasks import TaskConfig, TaskRow


@dataclass(frozen=True)
class Asked:
    """What a task asks: `pairs`, whose scores `result` turns into the task's. A score is log p(continuation | context)
    in nats; for a task that `is_greedy`, that and whether the continuation is the greedy one."""

    pairs: list[Pair]
    result: Callable[[Sequence[Any]], EvalResult]


class LikelihoodTask(TaskConfig):
    """A task that is scored by likelihoods."""

    metrics: ClassVar[Mapping[str, bool]]  # by name: whether higher is better
    is_greedy: ClassVar[bool] = False

    @abstractmethod
    def asked(self, rows: Sequence[TaskRow], encoder: Encoder, max_seq_len: int) -> Asked:
        """What these rows ask; those that exceed the context of `max_seq_len` are skipped and counted."""

    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        """The result; raises `ConfigError` for a log-likelihood that is not a number."""
        asked = self.asked(rows, subject.encoder, subject.max_seq_len)
        ask = subject.greedy_loglikelihoods if self.is_greedy else subject.loglikelihoods
        scores = in_order_of_length(self.name, asked.pairs, ask, progress)
        if not are_numbers(scores):
            raise ConfigError(f"task {self.name!r}: a log-likelihood is not a number: the model's weights are damaged")
        return asked.result(scores)


def are_numbers(scores: Sequence[Any]) -> bool:
    """Whether no log-likelihood among the scores is NaN."""
    return not any(math.isnan(score[0] if isinstance(score, tuple) else score) for score in scores)
