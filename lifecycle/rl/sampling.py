"""Completions of prompts by the weights that are trained.

The engine samples in this process, from the trainer's own arrays. What must hold: a completion depends on the weights,
the prompt and its seed only, so a killed run makes the same ones again, to the bit.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from lifecycle.inference.generate import Generator
from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import logical_axes, without_adapter
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.rl.batch import Text
from lifecycle.rl.environment import Played
from lifecycle.text.tokenizer import StreamDecoder


@dataclass(frozen=True)
class Prompt:
    """A row to answer: its number, token ids, the text or messages that it is made of, and its other columns."""

    number: int
    ids: Sequence[int]
    text: Text
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """A completion: ids with their log-probabilities as the sampler computed them, in nats, in the distributions that
    it drew from: at the settings' temperature, after top-k and the like; none if draws are not recorded. `kept`: of
    each token the ids that it could have been, where the settings leave some out."""

    prompt: Prompt
    ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    is_cut: bool  # it reached the length limit
    played: Played | None = None  # of several turns
    kept: Sequence[Sequence[int]] = ()

    @property
    def is_own(self) -> Sequence[bool]:
        """For each token, whether the model wrote it: what an environment says is not learned."""
        return [True] * len(self.ids) if self.played is None else self.played.is_own

    @property
    def fault(self) -> str:
        """Why nothing can be learned of it, and no reward is asked; empty if it was sound."""
        return "" if self.played is None else self.played.fault


class SamplingSettings(Protocol):
    """How completions are sampled."""

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens of a prompt."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """The most tokens of a completion."""
        ...

    @property
    def temperature(self) -> float:
        """Logits are divided by it."""
        ...

    @property
    def top_k(self) -> int:
        """Tokens are sampled from so many of the likeliest; 0: from all."""
        ...

    @property
    def top_p(self) -> float:
        """And from the likeliest that make up this share."""
        ...

    @property
    def min_p(self) -> float:
        """And from those with this share of the likeliest one's probability."""
        ...

    @property
    def num_slots(self) -> int:
        """Completions that are sampled at a time."""
        ...


class Completions:
    """Samples for one stage. `model` has everything but the weights."""

    def __init__(
        self,
        model: Model,
        settings: SamplingSettings,
        mesh: Mesh,
        num_kept: int | None = None,
        num_ids: int | None = None,
    ) -> None:
        """`num_kept` and `num_ids` as in `generate`."""
        self._model, self._settings, self._mesh = model, settings, mesh
        self._num_kept, self._num_ids = num_kept, num_ids
        self._whole = _whole(model.config, mesh)

    def of(self, params: Any) -> Callable[[Sequence[Prompt], Sequence[SamplingParams]], list[Rollout]]:
        """What answers prompts, each as its parameters say, in one batch after the other: with these weights, as steps
        see them. Holds a cache, and computes what prompts have in common with earlier ones once."""
        settings = self._settings
        longest = settings.max_prompt_tokens + settings.max_completion_tokens
        model, limits = _with_weights(self._model, self._whole(params)), (longest, self._num_kept, self._num_ids)
        return partial(_answered, Generator(model, settings.num_slots, self._mesh, *limits))

    def drawn_with(self, seed: int, length: int | None = None) -> SamplingParams:
        """A completion as the settings say, or with at most `length` tokens."""
        settings = self._settings
        filters = {"top_k": settings.top_k, "top_p": settings.top_p, "min_p": settings.min_p}
        length = length or settings.max_completion_tokens
        return SamplingParams(temperature=settings.temperature, seed=seed, max_tokens=length, **filters)

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        decoder = StreamDecoder(self._model.tokenizer)
        return "".join(map(decoder.feed, ids)) + decoder.finish()

    @property
    def likeliest(self) -> SamplingParams:
        """The likeliest completion."""
        return SamplingParams(temperature=0.0, seed=0, max_tokens=self._settings.max_completion_tokens)


def seed_of(*numbers: int) -> int:
    """A seed of 64 bits from numbers of as many."""
    content = b"".join(number.to_bytes(8, "little") for number in numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _whole(config: ModelConfig, mesh: Mesh) -> Callable[[Any], Any]:
    """From the trainer's weights to those of a model without an adapter, in which is what the adapter has learned."""
    if config.adapter is None:
        return lambda params: params
    places = tree_shardings(mesh, logical_axes(_beneath(config)))
    return jax.jit(partial(without_adapter, config), out_shardings=places)


def _beneath(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"adapter": None})


def _with_weights(model: Model, params: Any) -> Model:
    return Model(_beneath(model.config), params, model.tokenizer, model.template, model.defaults)


def _answered(generate: Generator, prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> list[Rollout]:
    completions = generate([prompt.ids for prompt in prompts], each)
    return [_rollout(prompt, found) for prompt, found in zip(prompts, completions, strict=True)]


def _rollout(prompt: Prompt, found: Completion) -> Rollout:
    draws = [token.draw for token in found.tokens if token.draw is not None]
    logprobs = [draw.logprob for draw in draws]
    if not all(map(math.isfinite, logprobs)):
        raise FloatingPointError(f"the sampler's log-probabilities of prompt {prompt.number} are not finite")
    kept = [draw.ids for draw in draws] if any(draw.ids for draw in draws) else []
    return Rollout(prompt, found.token_ids, logprobs, found.text, found.finish_reason == "length", kept=kept)
