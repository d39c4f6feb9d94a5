"""The shapes of answers, for the OpenAPI document: what is here is there in every answer. `answers.py` makes chats and
completions, whose choices have further fields."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetails(BaseModel):
    """What is wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 and above."""

    error: ErrorDetails


class ModelCard(BaseModel):
    """A served model. `parent` is the model of an adapter, `version` its content's hash, `max_model_len` its context in
    tokens, `tool_calls` the form in which it calls tools, `reasoning` what marks its thoughts."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    version: str
    max_model_len: int
    tool_calls: str | None
    reasoning: str | None


class ModelList(BaseModel):
    """The models that the key may use."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptDetails(BaseModel):
    """Of the tokens of prompts: how many were in the cache."""

    cached_tokens: int


class TokenUsage(_Open):
    """Tokens of a request; a generated stop token is counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TextChoice(_Open):
    """A continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class CompletionAnswer(_Open):
    """Continuations, numbered through prompts and choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: TokenUsage


class ChatMessage(_Open):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(_Open):
    """An answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatAnswer(_Open):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: TokenUsage


class Tokenized(BaseModel):
    """Token ids, as vLLM gives them."""

    tokens: list[int]
    count: int
    max_model_len: int


class TokenText(BaseModel):
    """The text of token ids."""

    prompt: str
