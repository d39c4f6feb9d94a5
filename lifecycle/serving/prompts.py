"""Token ids of a request's prompts; text that a tokenizer or a template rejects is the client's error."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lifecycle.inference.model import Model
from lifecycle.serving.errors import RequestError
from lifecycle.serving.schemas import DetokenizeRequest


def text_prompts(
    texts: Sequence[str | list[int]], model: Model, max_tokens: int, param: str = "prompt"
) -> list[list[int]]:
    """Token ids of each prompt; a text begins as the model's contexts do, token ids are taken as they are.

    Texts that cannot have as few as `max_tokens` tokens are rejected before they are tokenized.
    """
    tokenizer = model.tokenizer
    _require_short([text for text in texts if isinstance(text, str)], model, max_tokens, param)
    prompts: list[list[int]] = []
    for text in texts:
        if isinstance(text, str):
            prompts.append(tokenizer.begin(_encoded(lambda t=text: tokenizer.encode(t), param)))
        else:
            require_ids(text, model, param)
            prompts.append(text)
    if not prompts or not all(prompts):
        raise RequestError(400, f"{param}: must not be empty", param, "invalid_value")
    return prompts


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    model: Model,
    max_tokens: int,
    opens_answer: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation, with the opening of the assistant's turn; one that cannot have as few as
    `max_tokens` tokens is rejected before it is tokenized."""
    _require_short(["".join(message["content"] for message in messages)], model, max_tokens, "messages")
    _require_short([json.dumps(tools, ensure_ascii=False)], model, max_tokens, "tools")
    render = partial(model.template.render, messages, opens_answer, tools or None, variables)
    return _encoded(lambda: render().ids, "messages")


def text_ids(text: str, model: Model, max_tokens: int, begins: bool = True, param: str = "prompt") -> list[int]:
    """Token ids of a text, which begins as the model's contexts do unless `begins` is false."""
    _require_short([text], model, max_tokens, param)
    ids = _encoded(lambda: model.tokenizer.encode(text), param)
    return model.tokenizer.begin(ids) if begins else ids


def text_of(ask: DetokenizeRequest, model: Model) -> str:
    """The text of ids; special ones give their names."""
    require_ids(ask.tokens, model, "tokens")
    return model.tokenizer.decode(ask.tokens, skip_special=False)


def require_ids(ids: Sequence[int], model: Model, param: str) -> None:
    """Raises `RequestError` for ids that the tokenizer does not have."""
    _encoded(lambda: model.tokenizer.require_rows(ids), param)
    size = model.tokenizer.vocab_size
    if invalid := [token for token in ids if token >= size]:
        message = f"{param}: token id {invalid[0]} is outside the vocabulary of {size}"
        raise RequestError(400, message, param, "invalid_value")


def _require_short(texts: Sequence[str], model: Model, max_tokens: int, param: str) -> None:
    """Tokenizing 4 MB takes a second, and other requests wait for it."""
    most = max_tokens * model.tokenizer.longest_token
    for text in texts:
        if len(text) > most or len(text.encode("utf-8", "replace")) > most:
            message = f"{param}: a text of {len(text)} characters has more than the {max_tokens} tokens of the context"
            raise RequestError(400, message, param, "context_length_exceeded")


def _encoded[T](encode: Callable[[], T], param: str) -> T:
    """Text that a tokenizer or a template rejects is the client's error."""
    try:
        return encode()
    except ValueError as error:
        raise RequestError(400, str(error), param, "invalid_value") from None
