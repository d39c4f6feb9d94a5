"""Rows in other published layouts, in TRL's columns.

A conversion is stated by the run and never guessed. What must hold: it reads each column that it knows whole, leaves
every other one as it is, and raises `RowError` for rows that are not in its layout.

| conversion | columns                                             | become                                           |
|------------|-----------------------------------------------------|--------------------------------------------------|
| `alpaca`   | `instruction`, `input`, `system`, `output`          | `prompt` (messages), `completion`                |
| `sharegpt` | `conversations` of `{from, value}`, `system`        | `messages`; with `chosen, rejected` the `prompt` |

Alpaca's input follows its instruction after an empty line. Sources: tatsu-lab/stanford_alpaca (columns), LLaMA-Factory
`data/README.md` (both layouts, with `system`, calls and preferences), TRL 1.16 `maybe_convert_to_chatml`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from lifecycle.text.row_files import RowData, RowError

HINTS: Mapping[str, tuple[str, ...]] = {"alpaca": ("instruction",), "sharegpt": ("conversations",)}
CALL = "function_call"  # the speaker of a message that is a call, or a list of calls, in JSON
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "assistant": "assistant", "system": "system", "observation": "tool", "function_response": "tool", "tool": "tool",
}  # fmt: skip


def from_alpaca(row: RowData) -> dict[str, Any]:
    """`instruction`, `input` and `system` as `prompt`; `output`, if nothing else is the answer, as `completion`."""
    columns = dict(row)
    parts = {name: columns.pop(name, "") for name in ("instruction", "input", "system")}
    for name, value in parts.items():
        if not isinstance(value, str):
            raise RowError(f"convert: alpaca: {name} must be text, got {type(value).__name__}")
    if not parts["instruction"].strip():
        raise RowError("convert: alpaca: no instruction; correct the row, or leave rows.convert out")
    if "prompt" in columns:
        raise RowError("convert: alpaca: instruction becomes the prompt, and there is a column prompt; ignore one")
    asked = "\n\n".join(text for text in (parts["instruction"], parts["input"]) if text.strip())
    system = [{"role": "system", "content": parts["system"]}] if parts["system"].strip() else []
    if "output" in columns and not columns.keys() & {"completion", "chosen", "completions"}:
        columns["completion"] = columns.pop("output")
    return {"prompt": [*system, {"role": "user", "content": asked}], **columns}


def from_sharegpt(row: RowData) -> dict[str, Any]:
    """`conversations` as `messages`; with a choice of answers it is their `prompt`."""
    columns = dict(row)
    if "conversations" not in columns:
        raise RowError(f"convert: sharegpt: columns {', '.join(row) or 'none'}; expected conversations")
    spoken, system = columns.pop("conversations"), columns.pop("system", "")
    if not isinstance(spoken, list) or not isinstance(system, str):
        raise RowError("convert: sharegpt: conversations must be a list of {from, value}, and system text")
    messages = [{"role": "system", "content": system}] if system.strip() else []
    messages += [_message(number, turn) for number, turn in enumerate(spoken, 1)]
    name = "prompt" if columns.keys() & {"chosen", "completion"} else "messages"
    if name in columns:
        raise RowError(f"convert: sharegpt: conversations become {name}, and there is a column {name}; ignore one")
    answers = {key: _answer(columns[key]) for key in ("chosen", "rejected", "completion") if key in columns}
    return {name: messages, **columns, **answers}


CONVERSIONS: Mapping[str, Callable[[RowData], dict[str, Any]]] = {"alpaca": from_alpaca, "sharegpt": from_sharegpt}


def _answer(value: Any) -> Any:
    """An answer: text, one turn, or several."""
    turns = [value] if isinstance(value, Mapping) else value
    return [_message(number, turn) for number, turn in enumerate(turns, 1)] if isinstance(turns, list) else turns


def _message(number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or turn.keys() != {"from", "value"}:
        found = ", ".join(turn) if isinstance(turn, Mapping) else type(turn).__name__
        raise RowError(f"convert: sharegpt: turn {number}: expected from and value, got {found or 'nothing'}")
    speaker, value = turn["from"], turn["value"]
    if speaker == CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls(number, value)}
    if speaker not in SPEAKERS:
        known = ", ".join((*SPEAKERS, CALL))
        raise RowError(f"convert: sharegpt: turn {number}: unknown speaker {speaker!r}; known: {known}")
    return {"role": SPEAKERS[speaker], "content": value}


def _calls(number: int, value: Any) -> list[dict[str, Any]]:
    """A call, `{name, arguments}` in JSON, or a list of them, as OpenAI's `tool_calls`."""
    try:
        given = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise RowError(f"convert: sharegpt: turn {number}: {CALL} is not valid JSON: {error}") from None
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(c, Mapping) and c.keys() == {"name", "arguments"} for c in calls):
        raise RowError(f"convert: sharegpt: turn {number}: expected a call, {{name, arguments}}, or a list of calls")
    return [{"type": "function", "function": dict(call)} for call in calls]
