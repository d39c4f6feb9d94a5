"""Answers of `POST /v1/responses`: their items, whole and in the making, and the events of a stream that make them.

What must hold: the events' deltas add up to the items of the last event's answer, which is the one without a stream.
"""

import secrets
import string
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lifecycle.serving.response_schemas import Status
from lifecycle.text.parts import Part

ID_CHARACTERS = string.ascii_letters + string.digits  # the only ones that Mistral's templates take

type Event = tuple[str, dict[str, Any]]  # its name behind `response.`, its fields


class Content(BaseModel):
    """The text of an answer's message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The message of an answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[Content]


class Thought(BaseModel):
    """The text of thoughts."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputReasoning(BaseModel):
    """What a model thinks before it answers or calls."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    summary: list[Any] = []
    content: list[Thought]
    status: Status


class OutputCall(BaseModel):
    """A call of a function. `arguments` is JSON, as the model wrote it."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    status: Status


type OutputItem = OutputMessage | OutputReasoning | OutputCall


class IncompleteDetails(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputDetails(BaseModel):
    """Of the tokens of a prompt: how many were in a cache."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Of the generated tokens: how many were thoughts, as the tokenizer writes their text."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of one answer; a generated stop token is counted."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class ResponseAnswer(BaseModel):
    """The answer, whole or as far as it is made; with the settings that it is made by, as they were given."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any]
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str] = {}


class OutputItems:
    """An answer's items, made of its parts: `add` parts as they come, then `finish`; both tell the events of a
    stream."""

    def __init__(self, call_id_length: int) -> None:
        self.items: list[OutputItem] = []
        self._call_id_length = call_id_length
        self._call = -1  # the number of the call that the last item is

    def add(self, parts: Sequence[Part]) -> Iterator[Event]:
        """Appends parts to the items."""
        for part in parts:
            if not self.items or not self._continues(part):
                yield from self._close("completed")
                yield from self._open(part)
            if part.text:
                yield self._append(part.text)

    def finish(self, is_cut: bool) -> Iterator[Event]:
        """Completes the last item, which may be cut; an answer that says nothing has an empty message."""
        if not self.items:
            yield from self._open(Part("text", ""))
        yield from self._close("incomplete" if is_cut else "completed")

    def text_of(self, kind: Literal["message", "reasoning"]) -> str:
        """The text of all items of a kind."""
        found = (item for item in self.items if not isinstance(item, OutputCall) and item.type == kind)
        return "".join(part.text for item in found for part in item.content)

    def _continues(self, part: Part) -> bool:
        kinds = {"text": OutputMessage, "thought": OutputReasoning, "call": OutputCall}
        return isinstance(self.items[-1], kinds[part.kind]) and part.call == self._call

    def _open(self, part: Part) -> Iterator[Event]:
        name, self._call = secrets.token_hex(12), part.call
        if part.kind == "call":
            call_id = "".join(secrets.choice(ID_CHARACTERS) for _ in range(self._call_id_length))
            assert part.name is not None, "a call's first part has its name"
            item = OutputCall(id=f"fc_{name}", call_id=call_id, name=part.name, arguments="", status="in_progress")
        elif part.kind == "thought":
            item = OutputReasoning(id=f"rs_{name}", content=[], status="in_progress")
        else:
            item = OutputMessage(id=f"msg_{name}", content=[], status="in_progress")
        self.items.append(item)
        yield "output_item.added", {"output_index": len(self.items) - 1, "item": item.model_copy(deep=True)}
        if isinstance(item, OutputMessage):
            item.content.append(Content(text=""))
        elif isinstance(item, OutputReasoning):
            item.content.append(Thought(text=""))
        if not isinstance(item, OutputCall):
            yield "content_part.added", {**self._place(), "part": item.content[0].model_copy()}

    def _append(self, text: str) -> Event:
        item = self.items[-1]
        if isinstance(item, OutputCall):
            item.arguments += text
            return "function_call_arguments.delta", {**self._place(), "delta": text}
        item.content[0].text += text
        if isinstance(item, OutputReasoning):
            return "reasoning_text.delta", {**self._place(), "delta": text}
        return "output_text.delta", {**self._place(), "delta": text, "logprobs": []}

    def _close(self, status: Status) -> Iterator[Event]:
        if not self.items or self.items[-1].status != "in_progress":
            return
        item = self.items[-1]
        item.status = status
        if isinstance(item, OutputCall):
            yield "function_call_arguments.done", {**self._place(), "name": item.name, "arguments": item.arguments}
        else:
            part = item.content[0]
            if isinstance(part, Content):
                yield "output_text.done", {**self._place(), "text": part.text, "logprobs": []}
            else:
                yield "reasoning_text.done", {**self._place(), "text": part.text}
            yield "content_part.done", {**self._place(), "part": part}
        yield "output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _place(self) -> dict[str, Any]:
        """Where the last item's text is."""
        item = self.items[-1]
        place = {"item_id": item.id, "output_index": len(self.items) - 1}
        return place if isinstance(item, OutputCall) else {**place, "content_index": 0}
