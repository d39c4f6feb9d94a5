"""Rows of JSONL with TRL's column names, and their token ids with the mask of what is learned.

| columns                        | used for    | learned                                             |
|--------------------------------|-------------|-----------------------------------------------------|
| `text`                         | fine-tuning | the whole text and EOS                              |
| `messages`                     | fine-tuning | the assistant's contents and turn ends              |
| `prompt, completion`           | fine-tuning | the completion and its end                          |
| `prompt, chosen, rejected`     | preferences | the answers and their ends                          |
| `chosen, rejected`             | preferences | the same; the prompt is their shared beginning      |

`prompt`, `completion`, `chosen` and `rejected` are text, or lists of messages. What must hold: each error names the
file and the line; a row that cannot be learned from is dropped, counted and listed with its reason, never silently
shortened.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle.text.chat import ChatError, ChatTemplate, Message, check_messages
from lifecycle.text.interface import TokenizerError

LISTED = 20  # dropped rows that a report lists; the counts cover all

type RowData = Mapping[str, Any]


class RowError(ValueError):
    """A broken row; the message names the file and the line."""


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one row and, for each, whether it is a target."""

    ids: list[int]
    loss_mask: list[bool]


@dataclass
class RowsReport:
    """How many of a file's rows were kept and dropped, and why; `lines` has the line of each that was kept."""

    path: str
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def name(self, kept: int) -> str:
        """`FILE:LINE` of a kept row, numbered from 0."""
        return f"{self.path}:{self.lines[kept]}"

    def drop(self, line: int, reason: str, detail: str = "") -> None:
        """Counts a row as dropped, and keeps the first few with their lines as examples."""
        self.dropped[reason] += 1
        if len(self.examples) < LISTED:
            self.examples.append(f"{self.path}:{line}: {reason}{detail}")

    def plain(self) -> dict[str, Any]:
        """JSON-ready, for stats."""
        return {"rows": self.rows, "kept": self.kept, "dropped": dict(self.dropped), "examples": self.examples}


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSONL file; empty lines are skipped.

    Raises `RowError` with file and line for anything but a JSON object.
    """
    if not path.is_file():
        raise RowError(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_row(line, f"{path}:{number}")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as JSONL."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line; raises `RowError`, beginning with `where`, for anything else."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); one object a line") from None
    if not isinstance(row, dict):
        raise RowError(f"{where}: expected an object with named columns, got {type(row).__name__}")
    return row


def load_rows[E: EncodedRow | tuple[EncodedRow, EncodedRow]](
    path: Path, encode: Callable[[RowData], E], seq_len: int
) -> tuple[list[E], RowsReport]:
    """Encodes a file's rows with `encode_sft` or `encode_preference` of a `RowEncoder`.

    Rows with an empty answer or more than `seq_len` tokens are dropped and reported. Raises `RowError` for a broken
    row, an empty file, and if no row is left.
    """
    report = RowsReport(os.fspath(path))
    kept: list[E] = []
    for line, row in read_rows(path):
        report.rows += 1
        try:
            encoded = encode(row)
        except UnusableRow as reason:
            report.drop(line, str(reason))
            continue
        except (RowError, ChatError, TokenizerError) as error:
            raise RowError(f"{path}:{line}: {error}") from None
        if (length := _longest(encoded)) > seq_len:
            report.drop(line, f"longer than {seq_len} tokens", f" ({length})")
        else:
            kept.append(encoded)
            report.lines.append(line)
    report.kept = len(kept)
    if not kept:
        listed = "\n".join(f"  {example}" for example in report.examples)
        raise RowError(f"{path}: no row of {report.rows} is usable" + (f":\n{listed}" if listed else "; it is empty"))
    return kept, report


def _longest(encoded: EncodedRow | tuple[EncodedRow, EncodedRow]) -> int:
    rows = encoded if isinstance(encoded, tuple) else (encoded,)
    return max(len(row.ids) for row in rows)


class UnusableRow(RowError):
    """A sound row that cannot be learned from as it is; it is dropped and counted."""


class RowEncoder:
    """Encodes rows with one chat template and its tokenizer."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tokenizer = template.tokenizer

    def encode_sft(self, row: RowData) -> EncodedRow:
        """A fine-tuning row; raises `RowError` for wrong columns and `UnusableRow` if it has no target."""
        if "messages" in row:
            return self._conversation(row["messages"], learn_from=0)
        if "prompt" in row and "completion" in row:
            return self._answer(row["prompt"], row["completion"], "completion")
        if "text" in row:
            return self._answer("", row["text"], "text")
        raise RowError(f"columns {_columns(row)}; expected messages, or prompt and completion, or text")

    def encode_preference(self, row: RowData) -> tuple[EncodedRow, EncodedRow]:
        """(chosen, rejected) of a preference row; raises as `encode_sft`, and for a pair of equal answers."""
        if "chosen" not in row or "rejected" not in row:
            raise RowError(f"columns {_columns(row)}; expected chosen and rejected, and prompt unless they contain it")
        chosen, rejected = row["chosen"], row["rejected"]
        if chosen == rejected:
            raise UnusableRow("chosen and rejected are equal")
        if type(chosen) is not type(rejected):
            raise RowError("chosen and rejected must both be text or both be messages")
        prompt, chosen, rejected = (row["prompt"], chosen, rejected) if "prompt" in row else _shared(chosen, rejected)
        return self._answer(prompt, chosen, "chosen"), self._answer(prompt, rejected, "rejected")

    def _answer(self, prompt: Any, answer: Any, column: str) -> EncodedRow:
        if isinstance(prompt, list) or isinstance(answer, list):
            return self._conversation(
                _messages(prompt, "user") + _messages(answer, "assistant"), len(_messages(prompt, "user"))
            )
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise RowError(f"prompt and {column} must be text or lists of messages")
        if not answer:
            raise UnusableRow(f"empty {column}")
        before = [self._tokenizer.bos_id, *(self._tokenizer.encode(prompt) if prompt else [])]
        after = [*self._tokenizer.encode(answer), self._tokenizer.eos_id]
        return EncodedRow(before + after, [False] * len(before) + [True] * len(after))

    def _conversation(self, messages: Any, learn_from: int) -> EncodedRow:
        """A conversation whose targets are the assistant's messages from index `learn_from` on."""
        check_messages(messages)
        spoken: list[Message] = [m for m in messages[learn_from:] if m["role"] == "assistant" and m["content"].strip()]
        if not spoken:
            raise UnusableRow("empty assistant mask: no assistant message with a content")
        rendered = self._template.render(messages)
        if any(index >= learn_from for index in rendered.cut):
            raise UnusableRow(
                "the chat template leaves out a part of an earlier answer; make a row of each answer: the messages "
                "before it as prompt, and the answer as completion"
            )
        return EncodedRow(rendered.ids, [index >= learn_from for index in rendered.said_in])


def _messages(value: Any, role: str) -> list[Message]:
    """Text in a conversational row becomes one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    if not isinstance(value, list):
        raise RowError(f"expected text or a list of messages, got {type(value).__name__}")
    return value


def _shared(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) when both answers contain the prompt: their longest common beginning."""
    if not isinstance(chosen, str | list):
        raise RowError(f"chosen and rejected must be text or lists of messages, got {type(chosen).__name__}")
    pairs = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and shared and chosen[shared - 1] == " ":
        shared -= 1  # the space belongs to the answer's first word, as the tokenizer sees it
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _columns(row: RowData) -> str:
    return ", ".join(row) or "none"
