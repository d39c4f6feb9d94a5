"""Chat rows, preference pairs and evaluation tasks from the docstrings of Python documents.

| file                                       | rows                                                                    |
|--------------------------------------------|-------------------------------------------------------------------------|
| `chat-train.jsonl`, `chat-heldout.jsonl`   | `messages`: a question about a function and its answer                  |
| `pairs-train.jsonl`, `pairs-heldout.jsonl` | `prompt, chosen, rejected`: what it does, right and wrong answer        |
| `eval-choice.jsonl`                        | `query, choices, gold`: four answers of similar length, one true        |
| `eval-module.jsonl`                        | `prompt, answer`: which module, answer in backticks                     |
| `eval-parameters.jsonl`                    | `prompt, answer`: which parameters, answer in backticks                 |

What must hold: evaluation and `-heldout` rows come from held-out documents only, and no training row has the
description of a held-out function. In preferences every answer is chosen once and rejected once, so the answer alone
reveals nothing: only its match with the question does. To make that match decidable, random swaps (`derange`) keep
rejected answers from sharing a word with the question, as far as they succeed. Same documents and seed, same bytes.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lifecycle.data.functions import Function, described_functions
from lifecycle.text.row_files import write_rows

NUM_CHOICES = 4
NEIGHBOURS = 8  # wrong choices are drawn from this many answers on each side, ordered by length
REPAIR_PASSES = 20  # of random swaps in `derange`; 8 were enough for 230 and for 4,167 functions

DESCRIPTION_QUESTIONS = (
    "What does `{signature}` do?",
    "What is `{signature}` for?",
    "Describe `{signature}` in one sentence.",
    "Tell me what `{signature}` does.",
)
MODULE_QUESTIONS = (
    "Which module is `{name}` in?",
    "In which module do I find `{name}`?",
    "What module defines `{name}`?",
)
PARAMETER_QUESTIONS = (
    "Which parameters does `{signature}` take?",
    "Name the parameters of `{signature}`.",
    "What are the parameters of `{signature}`?",
)
SIGNATURE_QUESTIONS = (
    "What is the signature of `{name}`?",
    "How do I call `{name}`?",
    "Show me the signature of `{name}`.",
)

type Row = dict[str, Any]


class DocstringError(ValueError):
    """No rows can be made from the documents."""


def make_docstring_rows(documents: Sequence[Path], out: Path, seed: int) -> dict[str, Any]:
    """Writes all files from `kept-*.parquet` and `heldout-*.parquet` in these folders; returns counts,
    reasons and samples.

    Raises `DocstringError` if either split has fewer than four usable functions.
    """
    out.mkdir(parents=True, exist_ok=True)
    reasons = {"train": Counter[str](), "heldout": Counter[str]()}
    heldout = described_functions(_python_documents(documents, "heldout"), reasons["heldout"])
    identities = {function.identity for function in heldout}
    train = described_functions(_python_documents(documents, "kept"), reasons["train"])
    kept = [function for function in train if function.identity not in identities]
    reasons["train"]["same description as a held-out function"] = len(train) - len(kept)
    places = ", ".join(map(str, documents))
    for name, functions in (("kept", kept), ("heldout", heldout)):
        if len(functions) < NUM_CHOICES:
            raise DocstringError(
                f"{places}: {len(functions)} described functions in {name} documents, {NUM_CHOICES} are the least; "
                "add Python source with docstrings, or hold out a larger share"
            )
    files = {
        "chat-train": _chat_rows(kept, seed),
        "chat-heldout": _chat_rows(heldout, seed),
        "pairs-train": _pair_rows(kept, seed),
        "pairs-heldout": _pair_rows(heldout, seed),
        "eval-choice": _choice_rows(heldout, seed),
        "eval-module": _task_rows(heldout, "module", seed),
        "eval-parameters": _task_rows(heldout, "parameters", seed),
    }
    for name, rows in files.items():
        write_rows(out / f"{name}.jsonl", rows)
    return {
        "functions": {"train": len(kept), "heldout": len(heldout)},
        "left_out": {split: dict(sorted(counts.items())) for split, counts in reasons.items()},
        "rows": {name: len(rows) for name, rows in files.items()},
        "samples": {name: rows[:3] for name, rows in files.items()},
    }


def _python_documents(folders: Sequence[Path], prefix: str) -> Iterator[tuple[str, str]]:
    for path in (path for folder in folders for path in sorted(folder.glob(f"{prefix}-*.parquet"))):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=["path", "text"]):
            yield from zip(batch.column("path").to_pylist(), batch.column("text").to_pylist(), strict=True)


def question(function: Function, wordings: Sequence[str], seed: int) -> str:
    """One of the wordings, chosen by a hash of the seed, the first wording and the function's signature."""
    digest = hashlib.sha256(f"{seed}:{wordings[0]}:{function.signature}".encode()).digest()
    wording = wordings[int.from_bytes(digest[:4], "little") % len(wordings)]
    return wording.format(signature=function.signature, name=function.qualified_name)


def _task(function: Function, task: str, seed: int) -> tuple[str, str, str] | None:
    """(question, full answer, what the answer must contain) of a task; None if the task does not apply."""
    if task == "module":
        module = f"`{function.module}`"
        return question(function, MODULE_QUESTIONS, seed), f"It is in the module {module}.", module
    if task == "signature" and function.parameters is not None:
        signature = f"`{function.signature}`"
        return question(function, SIGNATURE_QUESTIONS, seed), f"Call it as {signature}.", signature
    if task == "parameters" and function.parameters:
        parameters = _listed([f"`{name}`" for name in function.parameters])
        return question(function, PARAMETER_QUESTIONS, seed), f"It takes {parameters}.", parameters
    return None


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _task_rows(functions: list[Function], task: str, seed: int) -> list[Row]:
    tasks = (_task(function, task, seed) for function in functions)
    return [{"prompt": asked, "answer": contained} for asked, _, contained in filter(None, tasks)]


def _chat_rows(functions: list[Function], seed: int) -> list[Row]:
    """For each function a row on what it does and, in turn, one of the other tasks; shuffled."""
    rows: list[Row] = []
    for number, function in enumerate(functions):
        rows.append(_chat(question(function, DESCRIPTION_QUESTIONS, seed), function.description))
        task = ("module", "signature", "parameters")[number % 3]
        if (made := _task(function, task, seed)) is not None:
            rows.append(_chat(made[0], made[1]))
    random.Random(seed).shuffle(rows)
    return rows


def _chat(asked: str, answer: str) -> Row:
    return {"messages": [_message("user", asked), _message("assistant", answer)]}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _pair_rows(functions: list[Function], seed: int) -> list[Row]:
    functions = random.Random(seed).sample(functions, len(functions))
    return [
        {
            "prompt": [_message("user", question(function, DESCRIPTION_QUESTIONS, seed))],
            "chosen": [_message("assistant", function.description)],
            "rejected": [_message("assistant", functions[other].description)],
        }
        for function, other in zip(functions, derange(functions, seed), strict=True)
    ]


def derange(functions: Sequence[Function], seed: int) -> list[int]:
    """For each function the index of another one, each index once.

    Random swaps, in at most `REPAIR_PASSES` passes, reduce the number of functions whose signature shares a word with
    the other's description.
    """
    count = len(functions)
    other = [(i + 1) % count for i in range(count)]

    def clashes(i: int, j: int) -> bool:
        return i == j or bool(functions[i].signature_stems & functions[j].description_stems)

    rng = random.Random(seed)
    for _ in range(REPAIR_PASSES):
        clashing = [i for i in range(count) if clashes(i, other[i])]
        for i in clashing:
            j = rng.randrange(count)
            if not clashes(i, other[j]) and not clashes(j, other[i]):
                other[i], other[j] = other[j], other[i]
    return other


def _choice_rows(functions: list[Function], seed: int) -> list[Row]:
    """Wrong choices have a similar length, so that length gives nothing away; the right one's index cycles."""
    rng = random.Random(seed)
    ordered = sorted(functions, key=lambda f: (len(f.description), f.description))
    rows: list[Row] = []
    for at, function in enumerate(ordered):
        low = max(0, min(at - NEIGHBOURS, len(ordered) - 2 * NEIGHBOURS - 1))
        near = [f for f in ordered[low : low + 2 * NEIGHBOURS + 1] if f is not function]
        choices = [f.description for f in rng.sample(near, NUM_CHOICES - 1)]
        gold = at % NUM_CHOICES
        choices.insert(gold, function.description)
        query = question(function, DESCRIPTION_QUESTIONS, seed)
        rows.append({"query": query, "choices": choices, "gold": gold})
    return rows
