"""Bodies of OpenAI's `POST /v1/responses`, as far as it is a chat whose turns the client keeps: with function tools,
thoughts (`reasoning` items) and the form of the answer.

What must hold: every item of an answer may be sent back as it came, and then says what it said.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lifecycle.serving.chat_schemas import (
    MAX_TOOLS,
    CalledFunction,
    ChatRequest,
    Effort,
    Function,
    Message,
    Name,
    NamedFunction,
    NamedTool,
    PlainFormat,
    Schema,
    SchemaFormat,
    Tool,
    ToolCall,
)
from lifecycle.serving.errors import RequestError
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
    "previous_response_id": (),  # nothing is stored
    "prompt": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
FIELDS = {  # of a chat, by the names that they have here
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}

ORDER = ("reasoning_content", "content", "tool_calls")  # of what a model makes in one turn

type Status = Literal["in_progress", "completed", "incomplete"]


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
    status: Status | None = None


class ReasoningText(Body):
    """A part of a model's thoughts."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Body):
    """The thoughts before an answer or a call, as they came; a chat template decides what becomes of them."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"encrypted_content": ()}
    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None
    content: list[ReasoningText] | None = None
    status: Status | None = None


class InputCall(Body):
    """A call that an earlier answer made, as it came."""

    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str  # JSON
    id: str | None = None
    status: Status | None = None


class CallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: Status | None = None


def _item_kind(item: Any) -> str | None:
    """None: of no kind, as it is no object."""
    if isinstance(item, Mapping):
        return str(item.get("type", "message"))
    return getattr(item, "type", None)


type Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputReasoning, Tag("reasoning")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="an item is of the type message, reasoning, function_call or function_call_output",
    ),
]


class FunctionTool(Body):
    """A function that the model may call; `strict`: arguments that do not fit the schema are impossible."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, tool: Any) -> Any:
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
        if kind != "function":
            message = f"tools: the type {kind} is not supported by this server, only function is"
            raise RequestError(400, message, "tools", "unsupported_parameter")
        return tool

    @property
    def plain(self) -> Tool:
        """The tool as a chat has it."""
        about = self.model_dump(exclude={"type"})
        return Tool(type="function", function=Function(**about))


class FunctionChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class NamedSchema(Schema):
    """An answer in JSON of a schema."""

    type: Literal["json_schema"]

    @property
    def plain(self) -> SchemaFormat:
        """The form as a chat has it."""
        schema = Schema.model_validate(self.model_dump(by_alias=True, exclude={"type"}))
        return SchemaFormat(type="json_schema", json_schema=schema)


class TextConfig(Body):
    """The form of the answer's text."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}
    format: Annotated[PlainFormat | NamedSchema, Field(discriminator="type")] | None = None


class Reasoning(Body):
    """How much the model thinks; `effort` is a chat's `reasoning_effort`. Thoughts come whole, without a summary."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "context": ("auto",),
        "generate_summary": (),
        "mode": ("standard",),
        "summary": (),
    }
    effort: Effort | None = None


class ResponseRequest(Body):
    """`POST /v1/responses`. Nothing is stored: as if `store` were false, which it may be."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None  # a system message before the input
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None  # False: at most one call
    reasoning: Reasoning | None = None
    stream: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None

    @property
    def chat(self) -> ChatRequest:
        """The same as a chat. Raises `RequestError` for what no chat can be."""
        turns = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        before = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        form, choice = None if self.text is None else self.text.format, self.tool_choice
        if isinstance(choice, FunctionChoice):
            choice = NamedTool(type="function", function=NamedFunction(name=choice.name))
        return ChatRequest(
            model=self.model,
            messages=[*before, *messages_of(turns)],
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=form.plain if isinstance(form, NamedSchema) else form,
            tools=[tool.plain for tool in self.tools] if self.tools else None,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls if self.tools else None,  # without tools it says nothing
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
        )

    @property
    def sender(self) -> str | None:
        """The client's label for the user on whose behalf it asks."""
        return self.safety_identifier if self.safety_identifier is not None else self.user


def messages_of(items: Iterable[Item]) -> list[Message]:
    """The items as a chat's messages. What a model made in one turn is one: thoughts, a text, calls."""
    messages: list[Message] = []
    turn: dict[str, Any] = {}
    for item in items:
        own = _of_turn(item)
        if own is None or not _goes_on(turn, own):
            messages += _assistant(turn)
            turn = {}
        if own is None:
            messages.append(_given(item))
        elif "tool_calls" in turn:
            turn["tool_calls"] += own["tool_calls"]
        else:
            turn |= own
    return [*messages, *_assistant(turn)]


def _goes_on(turn: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether an item is of the same turn: each kind comes once, in their order, but calls."""
    begun, new = max(map(ORDER.index, turn), default=-1), max(map(ORDER.index, own))
    return new > begun or new == begun == ORDER.index("tool_calls")


def _of_turn(item: Item) -> dict[str, Any] | None:
    """The fields that an item adds to the assistant's message; None for what others say."""
    if isinstance(item, InputReasoning):
        return {"reasoning_content": "".join(part.text for part in item.content or ())}
    if isinstance(item, InputCall):
        function = CalledFunction(name=item.name, arguments=item.arguments)
        return {"tool_calls": [ToolCall(id=item.call_id, function=function)]}
    if isinstance(item, InputMessage) and item.role == "assistant":
        return {"content": _text(item.content)}
    return None


def _assistant(turn: dict[str, Any]) -> list[Message]:
    said: dict[str, Any] = {"content": "", **turn}  # thoughts may have been cut
    return [Message(role="assistant", **said)] if turn else []


def _given(item: Item) -> Message:
    if isinstance(item, CallOutput):
        return Message(role="tool", tool_call_id=item.call_id, content=_text(item.output))
    assert isinstance(item, InputMessage), "the others are of the assistant"
    return Message(role=item.role, content=_text(item.content))


def _text(content: str | Iterable[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
