"""Answers of chats in OpenAI's shapes: text, thoughts (`reasoning_content`, DeepSeek's name) and calls of tools.

What must hold: the deltas of a stream, joined as OpenAI's clients join them, are the message of a whole answer.
"""

import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lifecycle.inference.generation import Event, Token
from lifecycle.serving.answers import AnswerForm, finite
from lifecycle.text.answer import AnswerParser
from lifecycle.text.harmony import HarmonyParser
from lifecycle.text.parts import Part

ID_CHARACTERS = string.ascii_letters + string.digits  # the only ones that Mistral's templates take
FIELDS = {"text": "content", "thought": "reasoning_content"}  # of a message, by the kind of a part


@dataclass(kw_only=True)
class ChatForm(AnswerForm):
    """Shapes the answer of a chat: `parser` makes a machine that takes one choice's text apart."""

    prefix: ClassVar[str] = "chatcmpl-"
    kind: ClassVar[str] = "chat.completion"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"
    parser: Callable[[], AnswerParser | HarmonyParser]
    call_id_length: int
    _parsers: dict[int, AnswerParser | HarmonyParser] = field(default_factory=dict)  # by choice
    _callers: set[int] = field(default_factory=set[int])  # choices that have made a call

    def choice(self, index: int, event: Event) -> dict[str, Any]:
        """A complete choice, with its message."""
        delta = self._delta(index, event)
        calls = delta.pop("tool_calls", None)
        message = {"role": "assistant", "content": None if calls else "", "refusal": None, **delta}
        if calls:
            message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
        logprobs = self._logprobs(self._said(event))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self._reason(index, event)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice, with the role."""
        return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def chunk(self, index: int, event: Event) -> dict[str, Any] | None:
        """The chunk for an event of a choice; None while its text may still become a call or a mark."""
        delta, logprobs = self._delta(index, event), self._logprobs(self._said(event))
        if not delta and not logprobs and event.finish_reason is None:
            return None
        choice = {"index": index, "delta": delta, "logprobs": logprobs}
        return self._chunk({**choice, "finish_reason": self._reason(index, event)})

    def _delta(self, index: int, event: Event) -> dict[str, Any]:
        """What an event adds to the message."""
        if index not in self._parsers:
            self._parsers[index] = self.parser()
        parser = self._parsers[index]
        parts = parser.feed(event.text) + (parser.flush() if event.finish_reason else [])
        delta: dict[str, Any] = {}
        for part in parts:
            if part.kind == "call":
                self._callers.add(index)
                _add_call(delta.setdefault("tool_calls", []), self._call(part))
            else:
                name = FIELDS[part.kind]
                delta[name] = delta.get(name, "") + part.text
        return delta

    def _call(self, part: Part) -> dict[str, Any]:
        if part.name is None:
            return {"index": part.call, "function": {"arguments": part.text}}
        call_id = "".join(secrets.choice(ID_CHARACTERS) for _ in range(self.call_id_length))
        function = {"name": part.name, "arguments": part.text}
        return {"index": part.call, "id": call_id, "type": "function", "function": function}

    def _reason(self, index: int, event: Event) -> str | None:
        return "tool_calls" if event.finish_reason == "stop" and index in self._callers else event.finish_reason

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        content = [
            {**self._named(t.id, t.logprob), "top_logprobs": [self._named(i, logprob) for i, logprob in t.top]}
            for t in tokens
        ]
        return {"content": content, "refusal": None}

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}


def _add_call(calls: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """A delta has each call once."""
    if calls and calls[-1]["index"] == new["index"]:
        calls[-1]["function"]["arguments"] += new["function"]["arguments"]
    else:
        calls.append(new)
