"""Offline generation and embedding: a batch of prompts through its own runner."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Pooling
from lifecycle.inference.programs import num_groups
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    num_slots: int = 8,
    mesh: Mesh | None = None,
    max_seq_len: int | None = None,
    num_kept: int | None = None,
    num_ids: int | None = None,
) -> list[Completion]:
    """The outputs for prompts of token ids, in their order; `params` for all, or one per prompt. `max_seq_len` shortens
    the model's context, and with it the cache. With `num_kept` each token has its `Draw`, with at most so many ids: a
    token whose settings keep more is one of the likeliest. 0: log-probabilities alone, at the temperature. `num_ids`:
    outputs have none of the tokenizer's ids from this one on.

    With one seed for all, equal prompts give equal outputs. On a mesh `num_slots` is rounded up to a multiple of its
    groups. In a job of several processes all make the same call, and all get all outputs.

    Raises `ContextLengthError` before anything is generated, `ConfigError` for a mesh that does not fit the model, and
    `ValueError` for a request without a seed on a mesh of several processes, which would draw different ones.
    """
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    if mesh is not None and any(own.temperature and own.seed is None for own in each) and jax.process_count() > 1:
        raise ValueError("a job of several processes needs a seed in every request, so that all sample alike")
    runner = _runner(model, num_slots, len(prompts), mesh, max_seq_len, num_kept, num_ids)
    generations = [runner.submit(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
    while runner.has_work:
        runner.turn()
    return [generation.wait() for generation in generations]


def embed(
    model: Model,
    prompts: Sequence[Sequence[int]],
    pooling: Pooling = "mean",
    num_slots: int = 8,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The vectors of prompts of token ids, `[N, D]`, float32, each of length 1; on a mesh as `generate`.

    Raises `ContextLengthError` before anything is computed, and `ConfigError` for a mesh that does not fit the model.
    """
    runner = _runner(model, num_slots, len(prompts), mesh)
    embeddings = [runner.embed(prompt, pooling) for prompt in prompts]
    while runner.has_work:
        runner.turn()
    return np.array([own.vector for own in embeddings]).reshape(len(prompts), model.config.d_model)


def _runner(
    model: Model,
    num_slots: int,
    num_prompts: int,
    mesh: Mesh | None,
    max_seq_len: int | None = None,
    num_kept: int | None = None,
    num_ids: int | None = None,
) -> Runner:
    if mesh is not None:
        num_slots = -(-num_slots // num_groups(mesh)) * num_groups(mesh)
    return Runner(
        model,
        num_slots,
        num_prompts,
        max_seq_len,
        dispatch_s=math.inf,
        mesh=mesh,
        num_kept=num_kept,
        num_ids=num_ids,
    )
