"""Request bodies of chats: messages, tools, and the form that an answer is to have.

The same rule as in `schemas.py`: nothing is silently ignored. `chat_template_kwargs` (vLLM's name) gives a chat
template variables of its own, such as `enable_thinking`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lifecycle.inference.sampling import MAX_TOP_LOGPROBS, SamplingParams
from lifecycle.serving.errors import RequestError
from lifecycle.serving.schemas import Body, Count, GenerationRequest, without

MAX_TOOLS = 128  # as in OpenAI's API

type Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
type Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]  # of a function or a schema, as OpenAI has them


class TextPart(Body):
    """A part of a message's content; only text is accepted."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """Which function a call is of, and its arguments: a JSON object, or its text."""

    name: Name
    arguments: str | dict[str, Any]


class ToolCall(Body):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def plain(self) -> dict[str, Any]:
        """As a chat template takes it, with arguments that are a mapping. Raises `RequestError` for others."""
        arguments = self.function.arguments
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict):
            message = f"messages: the arguments of the call {self.id} of {self.function.name} are not a JSON object"
            raise RequestError(400, message, "messages", "invalid_value")
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Body):
    """A turn of a conversation; `developer` means `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None  # of an assistant; then it needs no content
    reasoning_content: str | None = None  # of an assistant: its thoughts, for templates that take them
    tool_call_id: str | None = None  # of a tool: which call it answers
    name: str | None = None  # of a tool; without it, that of the call
    refusal: None = None  # fields of an answer's message, which clients send back unchanged
    audio: None = None
    function_call: None = None
    annotations: None = None

    @model_validator(mode="after")
    def _check_role(self) -> "Message":
        fields = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool", "name": "tool"}
        for field, role in fields.items():
            if getattr(self, field) is not None and self.role != role:
                message = f"messages: {field} belongs to messages of the role {role}, not {self.role}"
                raise RequestError(400, message, "messages", "invalid_value")
        if self.role == "tool" and self.tool_call_id is None:
            raise RequestError(400, "messages: a tool's message needs a tool_call_id", "messages", "invalid_value")
        if self.content is None and not self.tool_calls:
            raise RequestError(400, f"messages: the content of a {self.role} is missing", "messages", "invalid_value")
        return self

    @property
    def plain(self) -> dict[str, Any]:
        """As a chat template takes it: absent fields are absent."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        plain: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            plain["tool_calls"] = [call.plain for call in self.tool_calls]
        given = {name: getattr(self, name) for name in ("reasoning_content", "tool_call_id", "name")}
        return plain | {name: value for name, value in given.items() if value is not None}


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """As a chat template takes them: a tool's result without a name has that of the call that it answers.

    Raises `RequestError` for a result of a call that no message before it makes.
    """
    names: dict[str, str] = {}
    plain = [message.plain for message in messages]
    for message in plain:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            call = message["tool_call_id"]
            if call not in names:
                reason = f"messages: tool_call_id {call!r} is not the id of a call in an earlier message"
                raise RequestError(400, reason, "messages", "invalid_value")
            message.setdefault("name", names[call])
    return plain


class Function(Body):
    """A function that the model may call. `parameters` is the schema of its arguments; None: it has none."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # whether arguments that do not fit the schema are impossible


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    @property
    def plain(self) -> dict[str, Any]:
        """As a chat template takes it: absent fields are absent, but parameters are not."""
        function: dict[str, Any] = self.function.model_dump(exclude_none=True, exclude={"strict"})
        function.setdefault("parameters", {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


class NamedFunction(Body):
    """The function that a request names."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class PlainFormat(Body):
    """An answer in text, or in any JSON object."""

    type: Literal["text", "json_object"]


class Schema(Body):
    """A named JSON schema, which the answer fits whatever `strict` says. Name and description are for readers."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Body):
    """An answer in JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


class RegexFormat(Body):
    """An answer that a regular expression matches from end to end."""

    type: Literal["regex"]
    pattern: str


type ResponseFormat = Annotated[PlainFormat | SchemaFormat | RegexFormat, Field(discriminator="type")]


class Prediction(Body):
    """What the answer may be, in large parts: text."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Conversation(Body):
    """What a chat template is given."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_names(self) -> "_Conversation":
        names = [tool.function.name for tool in self.tools or ()]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise RequestError(400, f"tools: two functions have the name {double}", "tools", "invalid_value")
        return self


class ChatRequest(_Conversation, GenerationRequest):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = without("prediction")
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None  # None: auto
    parallel_tool_calls: bool | None = None  # False: at most one call
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    prediction: Prediction | None = None  # makes answers come sooner where it is right, and changes none

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
        return self

    @model_validator(mode="after")
    def _check_tools(self) -> "ChatRequest":
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise RequestError(400, "tool_choice needs tools", "tool_choice", "invalid_value")
            if self.parallel_tool_calls is not None:
                raise RequestError(400, "parallel_tool_calls needs tools", "parallel_tool_calls", "invalid_value")
        elif isinstance(self.tool_choice, NamedTool):
            known = [tool.function.name for tool in self.tools]
            if self.tool_choice.function.name not in known:
                message = f"tool_choice: no tool is named {self.tool_choice.function.name!r}; named: {', '.join(known)}"
                raise RequestError(400, message, "tool_choice", "invalid_value")
        return self

    @model_validator(mode="after")
    def _check_form(self) -> "ChatRequest":
        if self.structured_outputs is not None and self.response_format is not None:
            message = "structured_outputs and response_format say the same; give one of them"
            raise RequestError(400, message, "structured_outputs", "invalid_value")
        return self

    def sampling(self, defaults: SamplingParams, index: int) -> SamplingParams:
        """The settings of choice number `index`, with OpenAI's names for lengths and log-probabilities."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        changes = {"max_tokens": most, "top_logprobs": self.top_logprobs or 0}
        return super().sampling(defaults, index).model_copy(update=changes)


class TokenizeRequest(Body):
    """`POST /tokenize`: of a text as completions take it, or of a conversation as chats do."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True  # a text begins as the model's contexts do
    add_generation_prompt: bool = True  # a conversation ends with the opening of the assistant's turn

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise RequestError(400, "give either prompt or messages", "prompt", "invalid_value")
        for name in ("tools", "chat_template_kwargs"):
            if getattr(self, name) is not None and self.messages is None:
                raise RequestError(400, f"{name} needs messages", name, "invalid_value")
        return self
