"""A conversation that goes on by token ids: the message in what a model wrote, and what follows it up to its next turn.

What the model wrote stays as its own ids; only what the template writes behind it is added. That is the conversation
which the model would be shown elsewhere, where the template has the prefix property: the rendered conversation so far
is the beginning of the longer one. A template that has not, since it leaves thoughts out of earlier answers, say, is
refused: log-probabilities would belong to contexts that nobody sees.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lifecycle.text.answer import AnswerParser
from lifecycle.text.chat import ChatError, Rendered
from lifecycle.text.harmony import HarmonyParser
from lifecycle.text.interface import Tokenizer
from lifecycle.text.messages import text_of

PLACE = "a"  # for an answer that says nothing, which has no place in rendered text
FIX = "choose a chat template that leaves earlier turns as they are"


class RewrittenError(ChatError):
    """A template that changes what was there before, or does not say where an answer ends."""


def said(text: str, parser: AnswerParser | HarmonyParser, first_call: int, id_length: int) -> dict[str, Any]:
    """The assistant's message in a text, taken apart by a new `parser`: its content, thoughts and calls. The calls' ids
    are their numbers, from `first_call` on, of `id_length` characters."""
    parts = [*parser.feed(text), *parser.flush()]
    content = "".join(part.text for part in parts if part.kind == "text")
    thoughts = "".join(part.text for part in parts if part.kind == "thought")
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if part.kind == "call":
            made = calls.setdefault(part.call, {"name": part.name, "arguments": ""})
            made["arguments"] += part.text
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = [
            {"id": f"{number:0{id_length}d}", "type": "function", "function": function}
            for number, function in enumerate(calls.values(), first_call)
        ]
    return message


def renderable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message by which the place of a turn is found, whatever a model wrote: an empty answer has a letter, and calls
    whose arguments are no JSON object have none. What is in its place are the model's own ids."""
    calls = message.get("tool_calls")
    if not calls:
        is_said = text_of(message).strip() or message.get("reasoning_content")
        return dict(message) if message.get("role") != "assistant" or is_said else {**message, "content": PLACE}
    return {**message, "tool_calls": [{**call, "function": _with_arguments(call["function"])} for call in calls]}


def _with_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        is_object = isinstance(json.loads(function["arguments"] or "{}"), Mapping)
    except (ValueError, RecursionError):
        is_object = False
    return dict(function) if is_object else {**function, "arguments": "{}"}


def next_turn(
    before: Rendered, after: Rendered, answer: int, first: int, tokenizer: Tokenizer, stop_ids: Collection[int]
) -> list[int]:
    """The ids that follow the end of an answer, up to where the next one begins.

    `before` is the conversation that was answered, `after` the one with the answer (message number `answer`, from 0)
    and what followed it, both up to where the assistant goes on. `first` is the first message that the model wrote.
    Raises `RewrittenError` if `after` is not `before` and more.
    """
    turn = [place for place, index in enumerate(after.said_in) if index == answer]
    ends = [place for place in turn if after.ids[place] in stop_ids]
    if not ends:
        raise RewrittenError(f"the chat template writes no token that ends an answer to which more is said; {FIX}")
    told, own = _bytes(after.ids[: turn[0]], tokenizer), _bytes(after.ids[turn[0] :], tokenizer)
    asked = _bytes(before.ids, tokenizer)
    if not asked.startswith(told) or not own.startswith(asked[len(told) :]):
        raise RewrittenError(f"the chat template writes earlier turns in another way once more is said; {FIX}")
    if any(index >= first for index in after.cut):
        raise RewrittenError(f"the chat template leaves out a part of an earlier answer, such as its thoughts; {FIX}")
    return after.ids[ends[-1] + 1 :]


def _bytes(ids: Sequence[int], tokenizer: Tokenizer) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))
