"""What kinds of tasks with choices share: the row's faults, the likeliest choice, and the accuracy.

The rules are lm-evaluation-harness's (`ConfigurableTask.process_results`): `acc` picks the largest log-likelihood,
`acc_norm` the largest one per character of the choice, without the delimiter before it. `accuracy` is `acc`;
`accuracy_per_byte` divides by UTF-8 bytes, so it is `acc_norm` if the choices are ASCII. Of equal values the first
counts.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.evals.likelihood import Asked, LikelihoodTask
from lifecycle.evals.prompts import ShotTaskConfig
from lifecycle.evals.results import EvalResult, ScoredExample
from lifecycle.evals.scoring import fitting_rows, take
from lifecycle.evals.subject import Encoder, Pair
from lifecycle.evals.tasks import TaskRow, is_text


class ChoiceTaskConfig(LikelihoodTask, ShotTaskConfig):
    """A task whose rows have several texts, one of which is right: the one at position `gold`."""

    gold: ClassVar[str] = "gold"
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

    @abstractmethod
    def pairs(self, row: TaskRow, encoder: Encoder) -> list[Pair]:
        """What is scored of each choice, as ids."""

    @abstractmethod
    def example(self, row: TaskRow, logprobs: Sequence[float]) -> ScoredExample:
        """A row's score, from its choices' log-likelihoods."""

    @abstractmethod
    def summary(self, examples: Sequence[ScoredExample], skipped: Sequence[str], chance: float) -> EvalResult:
        """The result of all rows."""

    def asked(self, rows: Sequence[TaskRow], encoder: Encoder, max_seq_len: int) -> Asked:
        """All choices of the rows; the result is the accuracy of the likeliest one."""
        pairs = {row.id: self.pairs(row, encoder) for row in rows}
        longest = {row.id: max(len(context) + len(choice) - 1 for context, choice in pairs[row.id]) for row in rows}
        fitting, skipped = fitting_rows(rows, longest, max_seq_len)
        counts = [len(pairs[row.id]) for row in fitting]

        def result(logprobs: Sequence[float]) -> EvalResult:
            examples = [self.example(row, part) for row, part in zip(fitting, take(logprobs, counts), strict=True)]
            return self.summary(examples, skipped, math.fsum(1 / count for count in counts) / max(1, len(counts)))

        return Asked([pair for row in fitting for pair in pairs[row.id]], result)


def choices_problem(name: str, choices: Any, gold: Any) -> str:
    """The fault of a list of choices, in the column `name`, and of the right one's position; empty if there is none."""
    if not isinstance(choices, list) or len(choices) < 2 or not all(is_text(choice) for choice in choices):
        return f"expected a column `{name}`: a list of two texts or more"
    if len(set(choices)) < len(choices):
        return f"two {name} are the same"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        last = len(choices) - 1
        return f"expected a column `gold` from 0 to {last}: the right choice's position; got {gold!r}"
    return ""


def share_right(examples: Sequence[ScoredExample], picked: str) -> float:
    """The share of examples whose gold is the position in this entry of their detail."""
    return math.fsum(e.detail[picked] == e.detail["gold"] for e in examples) / max(1, len(examples))


def argmax(values: Sequence[float]) -> int:
    """The position of the largest value; the first one for ties."""
    return max(range(len(values)), key=lambda i: values[i])
