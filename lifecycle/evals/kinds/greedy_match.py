"""Kind `greedy_match`: whether the greedy continuation of the prompt is the answer. A row has `prompt` and `answer`.

The answer's tokens are scored, not generated: it counts if each of them is the likeliest (`evals/greedy.py`). This is
`acc` of lm-evaluation-harness's tasks with output type `loglikelihood`, such as LAMBADA (Paperno et al. 2016); the
`perplexity` that it reports for them is e to the power of `nats_per_answer`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.evals.likelihood import Asked, LikelihoodTask
from lifecycle.evals.prompts import PromptTaskConfig
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.scoring import fitting_rows
from lifecycle.evals.subject import Encoder
from lifecycle.evals.tasks import TaskRow, is_text


class GreedyMatchTask(LikelihoodTask, PromptTaskConfig):
    """The share of answers that are the greedy continuation, and the mean negative log-likelihood of an answer."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    gold: ClassVar[str] = "answer"
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "nats_per_answer": False}
    is_greedy: ClassVar[bool] = True
    default_template: ClassVar[str] = "{{ prompt }}"

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns; empty if there is none."""
        for name in self.columns:
            if not is_text(columns.get(name)):
                return f"expected a column `{name}` with some text"
        return self.prompt_problem(columns)

    def shot(self, row: TaskRow) -> tuple[str, str]:
        """A row as a solved example: its prompt and its answer."""
        return self.prompt(row), row.columns["answer"]

    def asked(self, rows: Sequence[TaskRow], encoder: Encoder, max_seq_len: int) -> Asked:
        """The rows' answers; the result is the share of greedy ones."""
        pairs = {row.id: self.pairs_of(row, [row.columns["answer"]], encoder)[0] for row in rows}
        lengths = {name: len(context) + len(answer) - 1 for name, (context, answer) in pairs.items()}
        fitting, skipped = fitting_rows(rows, lengths, max_seq_len)

        def result(scores: Sequence[tuple[float, bool]]) -> EvalResult:
            examples = [_example(row, *score) for row, score in zip(fitting, scores, strict=True)]
            other = {"nats_per_answer": -math.fsum(logprob for logprob, _ in scores) / max(1, len(scores))}
            return summarise(self.name, self.kind, "accuracy", self.definition, examples, skipped=skipped, other=other)

        return Asked([pairs[row.id] for row in fitting], result)


def _example(row: TaskRow, logprob: float, is_greedy: bool) -> ScoredExample:
    detail = {"prompt": row.columns["prompt"], "answer": row.columns["answer"], "logprob": round(logprob, 4)}
    return ScoredExample(id=row.id, score=float(is_greedy), detail=detail)
