"""Rollouts: completions of prompts by the weights that are trained, scored by the run's rewards.

What must hold: a completion's seed follows from the numbers of its step, prompt and sample only, so a killed run makes
the same ones again, to the bit.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.batch import RewardBatch, Scores, Text, TrainerState
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.reward_stage import NAME, ModelReward
from lifecycle.rl.sampling import Completions, Prompt, Rollout, seed_of
from lifecycle.training.checkpoints.agreement import by_writer
from lifecycle.training.served import served_by


@dataclass(frozen=True)
class Unscored:
    """A step's rollouts, samples of a prompt side by side, before its reward functions are called; with the scores of
    a reward model for those without a fault, and the seconds that both took. `metrics`: of `Scored`."""

    step: int
    rollouts: Sequence[Rollout]
    by_model: Sequence[float] | None
    generation_s: float
    by_model_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """A step's rollouts, samples of a prompt side by side, with their rewards, and the seconds that both took.
    `metrics`: what else is logged of how they were sampled; `version`: the steps that the weights had taken."""

    rollouts: Sequence[Rollout]
    scores: Scores
    generation_s: float
    reward_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    version: int | None = None

    @property
    def rewards(self) -> np.ndarray:
        """The totals, float64; NaN where no reward says anything."""
        return np.array(self.scores.totals, np.float64)


type Complete = Callable[[Sequence[Prompt], Sequence[SamplingParams]], list[Rollout]]  # a batch of prompts
type Answer = Callable[[Sequence[Prompt], Sequence[int], Sequence[int]], list[Rollout]]  # by seeds and most tokens
type Score = Callable[[Sequence[Rollout]], Scores]
type Found = tuple[Scores, float]  # with the seconds that finding them took


class Player(Protocol):
    """What plays episodes (`rl/episodes.py`)."""

    def played(self, prompts: Sequence[Prompt], each: Sequence[SamplingParams], complete: Complete) -> list[Rollout]:
        """An episode of each prompt's row."""
        ...

    def scored(self, rollouts: Sequence[Rollout], score: Score) -> Scores:
        """The episodes' rewards, with their environments'."""
        ...

    def close(self) -> None:
        """Ends its environments."""
        ...


class Sampler:
    """Samples and scores for one stage, with the weights as its steps see them. `model` has everything but these."""

    def __init__(
        self,
        model: Model,
        settings: RolloutConfig,
        seed: int,
        mesh: Mesh,
        by_model: ModelReward | None = None,
        player: Player | None = None,
    ) -> None:
        """`by_model`: the score of a reward model, which is added with the settings' weight. `player`: of episodes, if
        completions are such."""
        self._settings, self._seed = settings, seed
        self._completions = Completions(model, settings, mesh, num_kept=settings.top_k)
        self._rewards, self._by_model, self._player = settings.reward_functions, by_model, player
        self._scoring = threading.Lock()
        self._served = served_by(model.config, settings, mesh)

    def sample(self, step: int, params: Any, prompts: Sequence[Prompt], first: int = 0) -> Scored:
        """The rollouts of a step: `group_size` samples of each prompt. `first`: how many prompts of the step were
        sampled before."""
        return self.scored(self.drawn(step, params, prompts, first))

    def drawn(self, step: int, params: Any, prompts: Sequence[Prompt], first: int = 0) -> Unscored:
        """The same without the rewards of functions: all that devices do. Waits for the weights first."""
        seeds = [seed for place in range(first, first + len(prompts)) for seed in self.seeds(step, place)]
        asked = [prompt for prompt in prompts for _ in range(self._settings.group_size)]
        return self._drawn(step, self._served(params), asked, list(map(self._completions.drawn_with, seeds)))

    def seeds(self, step: int, place: int) -> list[int]:
        """Of the samples of a prompt that is the one at `place` of a step."""
        return [seed_of(self._seed, step, place, sample) for sample in range(self._settings.group_size)]

    def answering(self, params: Any) -> Answer:
        """What completes prompts by these weights, for which it waits."""
        jax.block_until_ready(params)
        complete, drawn_with = self._completions.of(self._served(params)), self._completions.drawn_with
        return lambda prompts, seeds, lengths: complete(prompts, list(map(drawn_with, seeds, lengths)))

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return self._completions.text(ids)

    def scored(self, drawn: Unscored) -> Scored:
        """Rollouts with their rewards. All processes of a job make the same call."""
        return self.told(drawn, partial(self.found, drawn))

    def found(self, drawn: Unscored) -> Found:
        """The rewards, from any thread; reward functions are called by one at a time. The process that writes calls
        them for all of its job."""
        with self._scoring:
            began = time.perf_counter()
            score, rollouts = partial(self._scores, drawn=drawn), drawn.rollouts
            scores = score(rollouts) if self._player is None else self._player.scored(rollouts, score)
            return scores, time.perf_counter() - began

    def told(self, drawn: Unscored, find: Callable[[], Found]) -> Scored:
        """Rollouts with the rewards that `find` returns in the process that writes, in all processes of the job."""
        if jax.process_count() == 1:
            scores, seconds = find()
        else:
            plain, seconds = by_writer(lambda: _plain(find()))
            scores = Scores.from_plain(plain)
        return Scored(drawn.rollouts, scores, drawn.generation_s, drawn.by_model_s + seconds, drawn.metrics)

    def answer(self, step: int, params: Any, prompts: Sequence[Prompt]) -> Scored:
        """The likeliest completion of each prompt."""
        return self.scored(self._drawn(step, params, prompts, [self._completions.likeliest] * len(prompts)))

    def close(self) -> None:
        """Ends what it has started."""
        if self._player is not None:
            self._player.close()

    def unscored(
        self, step: int, rollouts: Sequence[Rollout], generation_s: float, metrics: Mapping[str, float] | None = None
    ) -> Unscored:
        """A step's rollouts, with what the reward model says of them."""
        began = time.perf_counter()
        sound, own = [(rollout.prompt.ids, rollout.ids) for rollout in rollouts if not rollout.fault], None
        if self._by_model is not None and sound:
            own = self._by_model(sound)
        return Unscored(step, rollouts, own, generation_s, time.perf_counter() - began, metrics or {})

    def _drawn(self, step: int, params: Any, prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> Unscored:
        jax.block_until_ready(params)  # the step that makes them is no part of the sampling's time
        began = time.perf_counter()
        rollouts = self._completed(params, prompts, each)
        return self.unscored(step, rollouts, time.perf_counter() - began)

    def _completed(self, params: Any, prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> Sequence[Rollout]:
        """Of these weights. The engine's cache leaves the devices with the call."""
        complete = self._completions.of(params)
        return complete(prompts, each) if self._player is None else self._player.played(prompts, each, complete)

    def _scores(self, rollouts: Sequence[Rollout], drawn: Unscored) -> Scores:
        """Of the sound ones of what was drawn."""
        found = Scores({}, [math.nan] * len(rollouts), {})
        if self._rewards is not None:
            found = self._rewards.score(_reward_batch(rollouts, TrainerState(drawn.step, self._settings.steps)))
        if drawn.by_model is None:
            return found
        own, weight = list(drawn.by_model), self._settings.reward_weight
        totals = [weight * value + (0 if math.isnan(t) else t) for value, t in zip(own, found.totals, strict=True)]
        return replace(found, values={**found.values, NAME: own}, totals=totals)


def _plain(found: Found) -> tuple[dict[str, Any], float]:
    return found[0].plain(), found[1]


def _reward_batch(rollouts: Sequence[Rollout], state: TrainerState) -> RewardBatch:
    """As TRL passes it: completions of messages are messages."""
    completions = [_completion(rollout) for rollout in rollouts]
    names = {name for rollout in rollouts for name in rollout.prompt.columns}
    columns = {name: [rollout.prompt.columns.get(name) for rollout in rollouts] for name in sorted(names)}
    prompts = [rollout.prompt.text for rollout in rollouts]
    environments = [rollout.played.environment for rollout in rollouts if rollout.played is not None]  # of the writer
    ids = [rollout.ids for rollout in rollouts]
    return RewardBatch(prompts, completions, ids, columns, state, environments or None)


def _completion(rollout: Rollout) -> Text:
    if rollout.played is not None:
        return rollout.played.messages
    is_text = isinstance(rollout.prompt.text, str)
    return rollout.text if is_text else [{"role": "assistant", "content": rollout.text}]
