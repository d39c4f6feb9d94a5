"""Offline generation: all prompts at once through a runner of their own."""

import math
from collections.abc import Sequence

from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.runner import Runner
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
    runner = Runner(model, num_slots, max_queue=len(prompts), dispatch_s=math.inf)
    generations = [runner.submit(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
    while runner.has_work:
        runner.turn()
    return [generation.wait() for generation in generations]
