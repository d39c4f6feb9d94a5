"""Kind `multiple_choice`: whether the right choice is the likeliest. A row has `query`, `choices` and `gold`, the
position of the right choice.

A choice's likelihood is log p(choice | prompt), or the same per UTF-8 byte of the choice (Gao, "Multiple choice
normalization in LM evaluation", EleutherAI, 2021); how both compare with lm-evaluation-harness's: `kinds/choices.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.evals.kinds.choices import ChoiceTaskConfig, argmax, choices_problem, share_right
from lifecycle.evals.prompts import PromptTaskConfig
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.subject import Encoder, Pair
from lifecycle.evals.tasks import TaskRow


class MultipleChoiceTask(ChoiceTaskConfig, PromptTaskConfig):
    """Accuracy of the likeliest choice."""

    columns: ClassVar[tuple[str, ...]] = ("query", "choices", "gold")
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "accuracy_per_byte": True}
    default_template: ClassVar[str] = "{{ query }}"

    per_byte: bool = True  # pick by log-likelihood per byte of the choice; False: by its sum

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns; empty if there is none."""
        if not isinstance(columns.get("query"), str):
            return "expected a column `query` with text"
        problem = choices_problem("choices", columns.get("choices"), columns.get("gold"))
        return problem or self.prompt_problem(columns)

    def shot(self, row: TaskRow) -> tuple[str, str]:
        """A row as a solved example: its prompt and its right choice."""
        return self.prompt(row), row.columns["choices"][row.columns["gold"]]

    def pairs(self, row: TaskRow, encoder: Encoder) -> list[Pair]:
        """The prompt and each choice, as ids."""
        return self.pairs_of(row, row.columns["choices"], encoder)

    def example(self, row: TaskRow, logprobs: Sequence[float]) -> ScoredExample:
        """A row's score, from its choices' log-likelihoods."""
        choices: list[str] = row.columns["choices"]
        gold, likeliest = row.columns["gold"], argmax(logprobs)
        likeliest_per_byte = argmax([x / len(choice.encode()) for x, choice in zip(logprobs, choices, strict=True)])
        picked = likeliest_per_byte if self.per_byte else likeliest
        detail = {
            "query": row.columns["query"], "gold": gold, "likeliest": likeliest,
            "likeliest_per_byte": likeliest_per_byte, "answer": choices[gold], "picked": choices[picked],
            "logprobs": [round(x, 4) for x in logprobs],
        }  # fmt: skip
        return ScoredExample(id=row.id, score=float(picked == gold), detail=detail)

    def summary(self, examples: Sequence[ScoredExample], skipped: Sequence[str], chance: float) -> EvalResult:
        """Both accuracies, the one that `per_byte` selects as the result."""
        by_sum, per_byte = share_right(examples, "likeliest"), share_right(examples, "likeliest_per_byte")
        other = {"accuracy": by_sum, "accuracy_per_byte": per_byte, "chance": chance}
        metric = "accuracy_per_byte" if self.per_byte else "accuracy"
        return summarise(self.name, self.kind, metric, self.definition, examples, skipped=skipped, other=other)
