"""Offline generation: a batch of prompts through its own runner."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.programs import num_groups
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    num_slots: int = 8,
    mesh: Mesh | None = None,
) -> list[Completion]:
    """The outputs for prompts of token ids, in their order; `params` for all, or one per prompt.

    With one seed for all, equal prompts give equal outputs. On a mesh `num_slots` is rounded up to a multiple of its
    groups. In a job of several processes all make the same call, and all get all outputs.

    Raises `ContextLengthError` before anything is generated, `ConfigError` for a mesh that does not fit the model, and
    `ValueError` for a request without a seed on a mesh of several processes, which would draw different ones.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    if mesh is not None:
        num_slots = -(-num_slots // num_groups(mesh)) * num_groups(mesh)
        if any(own.temperature and own.seed is None for own in each) and jax.process_count() > 1:
            raise ValueError("a job of several processes needs a seed in every request, so that all sample alike")
    runner = Runner(model, num_slots, max_queue=len(prompts), dispatch_s=math.inf, mesh=mesh)
    generations = [runner.submit(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
    while runner.has_work:
        runner.turn()
    return [generation.wait() for generation in generations]
