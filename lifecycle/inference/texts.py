"""Text-to-text generation, for notebooks and scripts; the engine and the server use token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from lifecycle.core.config import validate
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams

type Conversation = Sequence[Mapping[str, str]]  # messages with `role` and `content`


def generate_texts(
    model: Model, prompts: Sequence[str | Conversation], mesh: Mesh | None = None, **sampling: Any
) -> list[str]:
    """The model's continuation of each plain text, and its answer to each conversation, in order.

    `sampling` overrides the model's defaults by the names of `SamplingParams` (`temperature=0, max_tokens=64`). Raises
    `ConfigError` for an invalid setting and `ContextLengthError` for a prompt that does not fit.
    """
    params = validate(SamplingParams, model.defaults.model_dump() | sampling, where="sampling")
    completions = generate(model, [prompt_ids(model, prompt) for prompt in prompts], params, mesh=mesh)
    return [completion.text for completion in completions]


def prompt_ids(model: Model, prompt: str | Conversation) -> list[int]:
    """The token ids that a plain text or a conversation's answer continues."""
    if isinstance(prompt, str):
        return model.tokenizer.begin(model.tokenizer.encode(prompt))
    return model.template.render(prompt, add_generation_prompt=True).ids
