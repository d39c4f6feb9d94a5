"""Generation and embedding of texts, for notebooks and scripts; the engine and the server use token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.config import validate
from lifecycle.inference.generate import embed, generate
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Pooling
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


def embed_texts(model: Model, texts: Sequence[str], pooling: Pooling = "mean", mesh: Mesh | None = None) -> np.ndarray:
    """A vector for each text, `[N, D]`, float32, of length 1: the mean of its tokens' hidden states, or the last one.

    Raises `ContextLengthError` for a text that does not fit.
    """
    return embed(model, [prompt_ids(model, text) for text in texts], pooling, mesh=mesh)


def prompt_ids(model: Model, prompt: str | Conversation) -> list[int]:
    """The token ids that a plain text or a conversation's answer continues."""
    if isinstance(prompt, str):
        return model.tokenizer.begin(model.tokenizer.encode(prompt))
    return model.template.render(prompt, add_generation_prompt=True).ids
