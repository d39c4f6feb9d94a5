"""Token ids of a request's prompts; text that a tokenizer or a template rejects is the client's error."""

from collections.abc import Callable, Mapping, Sequence

from lifecycle.inference.model import Model
from lifecycle.serving.errors import RequestError
from lifecycle.serving.schemas import CompletionRequest


def text_prompts(ask: CompletionRequest, model: Model, max_tokens: int) -> list[list[int]]:
    """Token ids of each prompt; a text begins as the model's contexts do, token ids are taken as they are.

    Texts that cannot have as few as `max_tokens` tokens are rejected before they are tokenized.
    """
    tokenizer = model.tokenizer
    _require_short([prompt for prompt in ask.prompts if isinstance(prompt, str)], model, max_tokens, "prompt")
    prompts: list[list[int]] = []
    for prompt in ask.prompts:
        if isinstance(prompt, str):
            prompts.append(tokenizer.begin(_encoded(lambda p=prompt: tokenizer.encode(p), "prompt")))
            continue
        _encoded(lambda p=prompt: tokenizer.require_rows(p), "prompt")
        if invalid := [token for token in prompt if token >= tokenizer.vocab_size]:
            message = f"prompt: token id {invalid[0]} is outside the vocabulary of {tokenizer.vocab_size}"
            raise RequestError(400, message, "prompt", "invalid_value")
        prompts.append(prompt)
    if not prompts or not all(prompts):
        raise RequestError(400, "prompt: must not be empty", "prompt", "invalid_value")
    return prompts


def chat_prompt(messages: Sequence[Mapping[str, str]], model: Model, max_tokens: int) -> list[int]:
    """Token ids of a conversation, with the opening of the assistant's turn; one that cannot have as few as
    `max_tokens` tokens is rejected before it is tokenized."""
    _require_short(["".join(message["content"] for message in messages)], model, max_tokens, "messages")
    return _encoded(lambda: model.template.render(messages, add_generation_prompt=True).ids, "messages")


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
