"""Scores a model on tasks.

- Bits per byte: total nats / ln 2 / total UTF-8 bytes; the EOS is predicted, the BOS is not. A document longer than the
  context is scored in windows; every token is predicted exactly once.
- Multiple choice: log p(choice | prompt), and the same per UTF-8 byte of the choice: lm-evaluation-harness's
  "byte-length normalised" `acc_norm` (Gao, "Multiple choice normalization in LM evaluation", EleutherAI, 2021).
- Generate: greedy output against the row's answers.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.results import EvalResult, Example, summarise, write_results
from lifecycle.evals.subject import Encoder, Pair, Subject
from lifecycle.evals.tasks import EvalConfig, Row, TaskConfig, answers, read_rows, render_prompt

CHUNK = 256  # pairs or prompts handed to the model at once: enough to sort by length, few enough to show progress
OVERLAP = 4  # a later window of a document repeats 1/4 of the context: a third more work, no token without context


def evaluate(
    config: EvalConfig, inputs: Mapping[str, Path], subject: Subject, out: Path, progress: Progress
) -> dict[str, Any]:
    """Runs all tasks and writes their results into `out`; returns the summaries by task. See `read_rows` for errors."""
    tasks = [(task, read_rows(task, inputs)) for task in config.tasks]  # all first: a late task's error comes early
    return write_results([run_task(task, rows, subject, progress) for task, rows in tasks], out)


def run_task(task: TaskConfig, rows: Sequence[Row], subject: Subject, progress: Progress) -> EvalResult:
    """Scores one task's rows."""
    if task.kind == "bits_per_byte":
        return score_documents(task, rows, subject, progress)
    if task.kind == "multiple_choice":
        return score_choices(task, rows, subject, progress)
    return score_generations(task, rows, subject, progress)


def score_documents(task: TaskConfig, rows: Sequence[Row], subject: Subject, progress: Progress) -> EvalResult:
    """Bits per byte of documents, and the perplexity per token."""
    windows = [
        document_windows(_document_ids(subject.encoder, row.columns["text"]), subject.max_seq_len) for row in rows
    ]
    logprobs = _loglikelihoods(task, [pair for pairs in windows for pair in pairs], subject, progress)
    ends = np.cumsum([len(pairs) for pairs in windows])
    nats = [-math.fsum(part) for part in np.split(logprobs, ends[:-1])]
    sizes = [len(row.columns["text"].encode()) for row in rows]
    examples = [
        Example(id=row.id, score=loss / math.log(2) / size, weight=size)
        for row, loss, size in zip(rows, nats, sizes, strict=True)
    ]
    tokens = sum(len(continuation) for pairs in windows for _, continuation in pairs)
    other = {"perplexity": math.exp(math.fsum(nats) / tokens)}  # per token: comparable with one tokenizer only
    return summarise(
        task.name, task.kind, "bits_per_byte", task.definition, examples, higher_is_better=False, other=other
    )


def document_windows(ids: Sequence[int], max_seq_len: int) -> list[Pair]:
    """Splits `[BOS, ..., EOS]` into pairs that fit the context and predict each token after the first exactly once."""
    pairs: list[Pair] = []
    done = 1
    while done < len(ids):
        begin = 0 if done == 1 else done - max(1, max_seq_len // OVERLAP)
        end = min(len(ids), begin + max_seq_len + 1)
        pairs.append((list(ids[begin:done]), list(ids[done:end])))
        done = end
    return pairs


def score_choices(task: TaskConfig, rows: Sequence[Row], subject: Subject, progress: Progress) -> EvalResult:
    """Accuracy of the likeliest choice."""
    pairs = {row.id: choice_pairs(task, row, subject.encoder) for row in rows}
    longest = {row.id: max(len(context) + len(choice) - 1 for context, choice in pairs[row.id]) for row in rows}
    fitting, skipped = _fitting(rows, longest, subject.max_seq_len)
    logprobs = _loglikelihoods(task, [pair for row in fitting for pair in pairs[row.id]], subject, progress)
    ends = np.cumsum([len(row.columns["choices"]) for row in fitting])
    parts = np.split(logprobs, ends[:-1])
    examples = [_choice_example(task, row, part) for row, part in zip(fitting, parts, strict=True)]
    by_sum, per_byte = (
        math.fsum(e.detail[name] == e.detail["gold"] for e in examples) / max(1, len(examples))
        for name in ("likeliest", "likeliest_per_byte")
    )
    chance = math.fsum(1 / len(row.columns["choices"]) for row in fitting) / max(1, len(fitting))
    other = {"accuracy": by_sum, "accuracy_per_byte": per_byte, "chance": chance}
    metric = "accuracy_per_byte" if task.per_byte else "accuracy"
    return summarise(task.name, task.kind, metric, task.definition, examples, skipped=skipped, other=other)


def choice_pairs(task: TaskConfig, row: Row, encoder: Encoder) -> list[Pair]:
    """The prompt and each choice, as ids.

    In a chat the choice begins the assistant's turn. In plain text prompt and choice are tokenised together, as in
    training, and split where the joint ids leave the prompt's, because a tokenizer may join characters across the
    border.
    """
    prompt = render_prompt(task, row)
    if task.chat:
        context = encoder.encode_chat([{"role": "user", "content": prompt}])
        return [(context, encoder.encode(choice)) for choice in row.columns["choices"]]
    alone = encoder.encode(prompt)
    pairs: list[Pair] = []
    for choice in row.columns["choices"]:
        joint = encoder.encode(prompt + choice)
        border = next((i for i, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), len(alone))
        border = min(border, len(joint) - 1)
        pairs.append(([encoder.bos_id, *joint[:border]], joint[border:]))
    return pairs


def score_generations(task: TaskConfig, rows: Sequence[Row], subject: Subject, progress: Progress) -> EvalResult:
    """Share of outputs that pass the task's check."""
    prompts = {row.id: _prompt_ids(task, row, subject.encoder) for row in rows}
    lengths = {row.id: len(prompts[row.id]) + task.max_tokens for row in rows}
    fitting, skipped = _fitting(rows, lengths, subject.max_seq_len)
    outputs: list[str] = []
    progress.start(f"evaluate {task.name}", len(fitting))
    for begin in range(0, len(fitting), CHUNK):
        chunk = [prompts[row.id] for row in fitting[begin : begin + CHUNK]]
        outputs += subject.generate(chunk, task.max_tokens, task.stop)
        progress.update(len(outputs))
    examples = [
        Example(
            id=row.id,
            score=float(passes(task.check, output, answers(row))),
            detail={"prompt": row.columns["prompt"], "output": output, "answer": row.columns["answer"]},
        )
        for row, output in zip(fitting, outputs, strict=True)
    ]
    return summarise(task.name, task.kind, task.check, task.definition, examples, skipped=skipped)


def passes(check: str, output: str, right: Sequence[str]) -> bool:
    """Whether an output meets one of the right answers.

    exact: the same but for white space at both ends; contains: the answer is in it; regex: the pattern is found in it.
    """
    if check == "exact":
        return any(output.strip() == answer.strip() for answer in right)
    if check == "contains":
        return any(answer in output for answer in right)
    return any(re.search(pattern, output) for pattern in right)


def _document_ids(encoder: Encoder, text: str) -> list[int]:
    return [encoder.bos_id, *encoder.encode(text), encoder.eos_id]


def _prompt_ids(task: TaskConfig, row: Row, encoder: Encoder) -> list[int]:
    prompt = render_prompt(task, row)
    if task.chat:
        return encoder.encode_chat([{"role": "user", "content": prompt}])
    return [encoder.bos_id, *encoder.encode(prompt)]


def _choice_example(task: TaskConfig, row: Row, logprobs: np.ndarray) -> Example:
    choices: list[str] = row.columns["choices"]
    per_byte = logprobs / [len(choice.encode()) for choice in choices]
    gold, likeliest, likeliest_per_byte = row.columns["gold"], int(logprobs.argmax()), int(per_byte.argmax())
    picked = likeliest_per_byte if task.per_byte else likeliest
    detail = {
        "query": row.columns["query"], "gold": gold, "likeliest": likeliest, "likeliest_per_byte": likeliest_per_byte,
        "answer": choices[gold], "picked": choices[picked], "logprobs": [round(float(x), 4) for x in logprobs],
    }  # fmt: skip
    return Example(id=row.id, score=float(picked == gold), detail=detail)


def _fitting(rows: Sequence[Row], lengths: Mapping[str, int], most: int) -> tuple[list[Row], list[str]]:
    """The rows that fit the context, and a line on each of the others."""
    fitting = [row for row in rows if lengths[row.id] <= most]
    skipped = [
        f"{Path(row.where).name}: {lengths[row.id]} tokens, the context holds {most}"  # no folder: results are portable
        for row in rows
        if lengths[row.id] > most
    ]
    return fitting, skipped


def _loglikelihoods(task: TaskConfig, pairs: Sequence[Pair], subject: Subject, progress: Progress) -> np.ndarray:
    """Log-likelihoods in the order of `pairs`, asked for in order of length so that a batch holds little padding."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found = np.empty(len(pairs))
    progress.start(f"evaluate {task.name}", len(pairs))
    for begin in range(0, len(order), CHUNK):
        places = order[begin : begin + CHUNK]
        found[places] = subject.loglikelihoods([pairs[i] for i in places])
        progress.update(begin + len(places))
    if np.isnan(found).any():
        raise ConfigError(f"task {task.name!r}: the model's log-likelihood is not a number: its weights are damaged")
    return found
