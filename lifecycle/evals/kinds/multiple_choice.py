"""Kind `multiple_choice`: whether the right choice is the likeliest. A row has `query`, `choices` and `gold`, the
position of the right choice.

A choice's likelihood is log p(choice | prompt), or the same per UTF-8 byte of the choice: lm-evaluation-harness's
"byte-length normalised" `acc_norm` (Gao, "Multiple choice normalization in LM evaluation", EleutherAI, 2021).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.core.progress import Progress
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.scoring import fitting_rows, loglikelihoods, take
from lifecycle.evals.subject import Encoder, Pair, Subject
from lifecycle.evals.tasks import PromptTaskConfig, TaskRow, is_text


class MultipleChoiceTask(PromptTaskConfig):
    """Accuracy of the likeliest choice."""

    columns: ClassVar[tuple[str, ...]] = ("query", "choices", "gold")
    default_template: ClassVar[str] = "{{ query }}"

    per_byte: bool = True  # pick by log-likelihood per byte of the choice; False: by its sum

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The error in a row's columns; empty if there is none."""
        choices, gold = columns.get("choices"), columns.get("gold")
        if not isinstance(columns.get("query"), str):
            return "expected a column `query` with text"
        if not isinstance(choices, list) or len(choices) < 2 or not all(is_text(choice) for choice in choices):
            return "expected a column `choices`: a list of two texts or more"
        if len(set(choices)) < len(choices):
            return "two choices are the same"
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
            last = len(choices) - 1
            return f"expected a column `gold` from 0 to {last}: the right choice's position; got {gold!r}"
        return ""

    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        """Accuracy of the most likely choice; rows that exceed the model's context are skipped and counted."""
        pairs = {row.id: self.pairs(row, subject.encoder) for row in rows}
        longest = {row.id: max(len(context) + len(choice) - 1 for context, choice in pairs[row.id]) for row in rows}
        fitting, skipped = fitting_rows(rows, longest, subject.max_seq_len)
        logprobs = loglikelihoods(self.name, [pair for row in fitting for pair in pairs[row.id]], subject, progress)
        parts = take(logprobs, [len(row.columns["choices"]) for row in fitting])
        examples = [self._example(row, part) for row, part in zip(fitting, parts, strict=True)]
        by_sum, per_byte = (
            math.fsum(e.detail[name] == e.detail["gold"] for e in examples) / max(1, len(examples))
            for name in ("likeliest", "likeliest_per_byte")
        )
        chance = math.fsum(1 / len(row.columns["choices"]) for row in fitting) / max(1, len(fitting))
        other = {"accuracy": by_sum, "accuracy_per_byte": per_byte, "chance": chance}
        metric = "accuracy_per_byte" if self.per_byte else "accuracy"
        return summarise(self.name, self.kind, metric, self.definition, examples, skipped=skipped, other=other)

    def pairs(self, row: TaskRow, encoder: Encoder) -> list[Pair]:
        """The prompt and each choice, as ids.

        In a chat the choice begins the assistant's turn. In plain text prompt and choice are tokenised together, as in
        training, and split where the joint ids first differ from the prompt's own, because a tokenizer may merge
        characters across the border.
        """
        if self.chat:
            context = self.prompt_ids(row, encoder)
            return [(context, encoder.encode(choice)) for choice in row.columns["choices"]]
        prompt = self.prompt(row)
        alone = encoder.encode(prompt)
        pairs: list[Pair] = []
        for choice in row.columns["choices"]:
            joint = encoder.encode(prompt + choice)
            border = next((i for i, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), len(alone))
            border = min(border, len(joint) - 1)
            pairs.append(([encoder.bos_id, *joint[:border]], joint[border:]))
        return pairs

    def _example(self, row: TaskRow, logprobs: Sequence[float]) -> ScoredExample:
        choices: list[str] = row.columns["choices"]
        gold, likeliest = row.columns["gold"], _argmax(logprobs)
        likeliest_per_byte = _argmax([x / len(choice.encode()) for x, choice in zip(logprobs, choices, strict=True)])
        picked = likeliest_per_byte if self.per_byte else likeliest
        detail = {
            "query": row.columns["query"], "gold": gold, "likeliest": likeliest,
            "likeliest_per_byte": likeliest_per_byte, "answer": choices[gold], "picked": choices[picked],
            "logprobs": [round(x, 4) for x in logprobs],
        }  # fmt: skip
        return ScoredExample(id=row.id, score=float(picked == gold), detail=detail)


def _argmax(values: Sequence[float]) -> int:
    """The position of the largest value; the first one for ties."""
    return max(range(len(values)), key=lambda i: values[i])
