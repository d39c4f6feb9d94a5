"""Offline generation: all prompts at once through an engine of their own."""

from collections.abc import Sequence

from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    num_slots: int = 8,
) -> list[Completion]:
    """The outputs for prompts of token ids, in their order; `params` for all, or one for each.

    With one seed for all, equal prompts give equal outputs. Raises `ContextLengthError` before anything is generated.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    with Engine(model, num_slots=num_slots, max_queue=len(prompts)) as engine:
        for prompt, own in zip(prompts, each, strict=True):
            engine.max_tokens(len(prompt), own)
        running = [engine.submit(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
        return [generation.wait() for generation in running]
