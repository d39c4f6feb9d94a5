"""Bodies and answers of OpenAI's `POST /v1/responses`, as far as it is a chat whose turns the client keeps."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from lifecycle.serving.chat_schemas import ChatRequest, Message
from lifecycle.serving.parsing import Body
from lifecycle.serving.schemas import Count, Label

# Known but unsupported fields: the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "metadata": ({},),
    "moderation": (),
    "parallel_tool_calls": (),
    "previous_response_id": (),  # nothing is stored
    "prompt": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


class InputText(Body):
    """A part of a message that was given to a model."""

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """A part of a message that a model wrote, as it came."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class InputMessage(Body):
    """A turn of a conversation; an answer's message may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | OutputText]
    id: str | None = None  # of an answer's message, as its status
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @property
    def plain(self) -> Message:
        """The turn as a chat has it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message(role=self.role, content=text)


class ResponseRequest(Body):
    """`POST /v1/responses`. Nothing is stored: as if `store` were false, which it may be."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    model: str
    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None  # a system message before the input
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None

    @property
    def chat(self) -> ChatRequest:
        """The same as a chat."""
        turns = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        before = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        return ChatRequest(
            model=self.model,
            messages=[*before, *(turn.plain for turn in turns)],
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )

    @property
    def sender(self) -> str | None:
        """The client's label for the user on whose behalf it asks."""
        return self.safety_identifier if self.safety_identifier is not None else self.user


type Status = Literal["in_progress", "completed", "incomplete"]


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


class IncompleteDetails(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputDetails(BaseModel):
    """Of the tokens of a prompt: how many were in a cache."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Of the generated tokens: how many were reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of one answer; a generated stop token is counted."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class ResponseAnswer(BaseModel):
    """The answer, whole or as far as it is made; with the settings that it is made by."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float
    text: dict[str, dict[str, str]] = {"format": {"type": "text"}}
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str] = {}
