"""Offline generation and embedding: a batch of prompts through its own runner."""

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.inference.generation import Completion, Generation
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Embedding, Pooling
from lifecycle.inference.programs import num_groups
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.stats import EngineStats


class Generator:
    """Generates for one batch of prompts after the other, by the same weights. A prompt that begins as an earlier one
    is computed from there on, while the cache has its pages; its output is the same."""

    def __init__(
        self,
        model: Model,
        num_slots: int = 8,
        mesh: Mesh | None = None,
        max_seq_len: int | None = None,
        num_kept: int | None = None,
        num_ids: int | None = None,
    ) -> None:
        """`max_seq_len` shortens the model's context, and with it the cache. With `num_kept` each token has its `Draw`,
        with at most so many ids: a token whose settings keep more is one of the likeliest. 0: log-probabilities alone,
        at the temperature. `num_ids`: outputs have none of the tokenizer's ids from this one on. On a mesh `num_slots`
        is rounded up to a multiple of its groups.

        Raises `ConfigError` for a mesh that does not fit the model.
        """
        self._mesh = mesh
        self._runner = _runner(model, num_slots, mesh, max_seq_len, num_kept, num_ids)

    def __call__(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """The outputs for prompts of token ids, in their order; `params` for all, or one per prompt.

        With one seed for all, equal prompts give equal outputs. In a job of several processes all make the same call,
        and all get all outputs. Raises `ContextLengthError` before anything is generated, and `ValueError` for a
        request without a seed on a mesh of several processes, which would draw different ones.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        is_random = any(own.temperature and own.seed is None for own in each)
        if self._mesh is not None and is_random and jax.process_count() > 1:
            raise ValueError("a job of several processes needs a seed in every request, so that all sample alike")
        generations: list[Generation] = []
        with ExitStack() as submitted:
            for prompt, own in zip(prompts, each, strict=True):
                generations.append(self._runner.submit(prompt, own))
                submitted.callback(generations[-1].cancel)
            while self._runner.has_work:
                self._runner.turn()
            submitted.pop_all()
        return [generation.wait() for generation in generations]

    @property
    def stats(self) -> EngineStats:
        """What the engine has counted."""
        return self._runner.stats


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
    """The outputs for one batch of prompts; arguments, results and errors as of a `Generator`."""
    return Generator(model, num_slots, mesh, max_seq_len, num_kept, num_ids)(prompts, params)


class Embedder:
    """Embeds one batch of prompts after the other, by the same weights."""

    def __init__(
        self, model: Model, num_slots: int = 8, mesh: Mesh | None = None, max_seq_len: int | None = None
    ) -> None:
        """Arguments and errors as of a `Generator`."""
        self._runner, self._d_model = _runner(model, num_slots, mesh, max_seq_len), model.config.d_model

    def __call__(self, prompts: Sequence[Sequence[int]], pooling: Pooling = "mean") -> np.ndarray:
        """The vectors of prompts of token ids, `[N, D]`, float32, each of length 1.

        Raises `ContextLengthError` before anything is computed, and `EngineError` for a vector that is not finite.
        """
        embeddings: list[Embedding] = []
        with ExitStack() as submitted:
            for prompt in prompts:
                embeddings.append(self._runner.embed(prompt, pooling))
                submitted.callback(embeddings[-1].cancel)
            while self._runner.has_work:
                self._runner.turn()
            submitted.pop_all()
        for own in embeddings:
            own.wait()
        return np.array([own.vector for own in embeddings]).reshape(len(prompts), self._d_model)


def embed(
    model: Model,
    prompts: Sequence[Sequence[int]],
    pooling: Pooling = "mean",
    num_slots: int = 8,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The vectors of one batch of prompts; arguments, result and errors as of an `Embedder`."""
    return Embedder(model, num_slots, mesh)(prompts, pooling)


def _runner(
    model: Model,
    num_slots: int,
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
        sys.maxsize,  # the caller's batch waits in it
        max_seq_len,
        dispatch_s=math.inf,
        mesh=mesh,
        num_kept=num_kept,
        num_ids=num_ids,
    )
