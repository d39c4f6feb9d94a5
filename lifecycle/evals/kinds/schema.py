"""Kind `schema`: which of several beginnings makes the same ending likeliest. A row has `contexts`, `continuation` and
`gold`, the position of the right beginning.

This is the partial scoring of Winograd schemas (Trinh and Le, "A Simple Method for Commonsense Reasoning", 2018):
each option stands in the context, and only the text after it is scored. lm-evaluation-harness scores Winogrande so
(`tasks/winogrande/preprocess_winogrande.py`, several inputs, `acc`): the largest log p(continuation | context).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.evals.kinds.choices import ChoiceTaskConfig, argmax, choices_problem
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.subject import Encoder, Pair
from lifecycle.evals.tasks import TaskRow, is_text


class SchemaTask(ChoiceTaskConfig):
    """Accuracy of the context that makes the continuation likeliest, in plain text."""

    columns: ClassVar[tuple[str, ...]] = ("contexts", "continuation", "gold")

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns; empty if there is none."""
        if not is_text(columns.get("continuation")):
            return "expected a column `continuation` with some text"
        return choices_problem("contexts", columns.get("contexts"), columns.get("gold"))

    def shot(self, row: TaskRow) -> tuple[str, str]:
        """A row as a solved example: its right context and its continuation."""
        return row.columns["contexts"][row.columns["gold"]], row.columns["continuation"]

    def pairs(self, row: TaskRow, encoder: Encoder) -> list[Pair]:
        """Each context with the continuation, as ids."""
        prompts = [self.plain_prompt(row, context) for context in row.columns["contexts"]]
        return [pair for prompt in prompts for pair in self.plain_pairs(prompt, [row.columns["continuation"]], encoder)]

    def example(self, row: TaskRow, logprobs: Sequence[float]) -> ScoredExample:
        """A row's score, from its continuation's log-likelihoods."""
        contexts, gold, picked = row.columns["contexts"], row.columns["gold"], argmax(logprobs)
        detail = {
            "continuation": row.columns["continuation"], "gold": gold, "likeliest": picked, "answer": contexts[gold],
            "picked": contexts[picked], "logprobs": [round(x, 4) for x in logprobs],
        }  # fmt: skip
        return ScoredExample(id=row.id, score=float(picked == gold), detail=detail)

    def summary(self, examples: Sequence[ScoredExample], skipped: Sequence[str], chance: float) -> EvalResult:
        """The share of rows whose right context is picked."""
        other = {"chance": chance}
        return summarise(self.name, self.kind, "accuracy", self.definition, examples, skipped=skipped, other=other)
