"""Completions in pieces: a step trains on the groups that are whole first, and the others go on with the next weights.

A step otherwise waits for its longest completion, while other slots are empty (Kimi Team 2025, "Kimi k1.5", section
2.6.2, "Partial Rollouts"). Here more groups are in flight than a step needs, and all get a piece at a time until enough
are whole. What must hold: which groups a step takes follows from their tokens, not from slots or time; no group is
trained on more than `max_staleness` steps after its first tokens; what is in flight is a value, which checkpoints have.
"""

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lifecycle.model.params import Params
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.rollouts import Answer, Sampler, Unscored
from lifecycle.rl.sampling import Prompt, Rollout


@dataclass(frozen=True)
class Begun:
    """A completion so far: the seed of its draws, and what a `Rollout` has of its tokens. `is_whole`: it has ended, at
    the length limit if it `is_cut`."""

    seed: int
    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    kept: Sequence[Sequence[int]] = ()
    is_whole: bool = False
    is_cut: bool = False

    def with_piece(self, piece: Rollout, longest: int) -> "Begun":
        """After so many tokens more; it may have `longest` in all."""
        ids = [*self.ids, *piece.ids]
        is_cut = piece.is_cut and len(ids) == longest
        logprobs, kept = [*self.logprobs, *piece.logprobs], [*self.kept, *piece.kept]
        return Begun(self.seed, ids, logprobs, kept, is_cut or not piece.is_cut, is_cut)


@dataclass(frozen=True)
class Group:
    """Samples of a prompt. `version`: how many steps the weights had taken from which their first tokens are."""

    prompt: Prompt
    version: int
    samples: Sequence[Begun]

    @property
    def is_whole(self) -> bool:
        """Whether all samples have ended."""
        return all(sample.is_whole for sample in self.samples)

    def plain(self) -> dict[str, Any]:
        """JSON-ready, with the prompt's number alone; samples are compressed, as kept ids may be millions."""
        samples = json.dumps([asdict(sample) for sample in self.samples]).encode()
        content = base64.b85encode(zlib.compress(samples, 1)).decode("ascii")
        return {"prompt": self.prompt.number, "version": self.version, "samples": content}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], prompts: Mapping[int, Prompt]) -> "Group":
        """The reverse, with prompts by their numbers."""
        samples = json.loads(zlib.decompress(base64.b85decode(plain["samples"])))
        return cls(prompts[plain["prompt"]], plain["version"], [Begun(**sample) for sample in samples])


type Flight = Sequence[Group]  # in the order in which they began


def num_to_begin(flight: Flight, settings: RolloutConfig, step: int) -> int:
    """How many groups begin at a step: as many as may be in flight, but for those that no step is left for."""
    assert settings.partial is not None, "the stage samples in pieces"
    steps_left = max(settings.steps - step, 1)
    return max(min(settings.partial.prompts_in_flight, settings.prompts_per_step * steps_left) - len(flight), 0)


def begun(sampler: Sampler, step: int, prompts: Sequence[Prompt]) -> Flight:
    """Groups that begin at a step, without a token."""
    return [
        Group(prompt, step, [Begun(seed) for seed in sampler.seeds(step, place)])
        for place, prompt in enumerate(prompts)
    ]


def drawn_in_pieces(
    sampler: Sampler, settings: RolloutConfig, step: int, params: Params, flight: Flight
) -> tuple[Unscored, Flight]:
    """Goes on with all groups in flight until a step's groups can be taken; these, and those that stay in flight."""
    began = time.perf_counter()
    flight, places, rounds = _until_taken(sampler, settings, step, params, flight)
    groups = [flight[place] for place in places]
    left = [group for place, group in enumerate(flight) if place not in places]
    metrics = {
        "sampling/rounds": float(rounds),
        "sampling/carried_groups": float(len(left)),
        "sampling/staleness": float(np.mean([step - group.version for group in groups])),
    }
    rollouts = [_rollout(sampler, group.prompt, one) for group in groups for one in group.samples]
    return sampler.unscored(step, rollouts, time.perf_counter() - began, metrics), left


def _until_taken(
    sampler: Sampler, settings: RolloutConfig, step: int, params: Params, flight: Flight
) -> tuple[Flight, Sequence[int], int]:
    """The groups in flight, the places of a step's, and the rounds that it took. The engine's cache leaves the devices
    with the call."""
    answer, rounds = sampler.answering(params), 0
    while (places := taken(flight, settings, step)) is None:
        flight, rounds = _gone_on(answer, settings, flight), rounds + 1
    return flight, places, rounds


def _rollout(sampler: Sampler, prompt: Prompt, one: Begun) -> Rollout:
    text = sampler.text(one.ids if one.is_cut else one.ids[:-1])  # the id that ends it says nothing
    return Rollout(prompt, one.ids, one.logprobs, text, one.is_cut, kept=one.kept)


def taken(flight: Flight, settings: RolloutConfig, step: int) -> Sequence[int] | None:
    """The places of a step's groups, the oldest that are whole; None while there are too few, or while one that is
    left could come too late: of those that `k` steps from now on are the last ones for, `k` steps can take no more."""
    num, most = settings.prompts_per_step, settings.max_staleness
    places = [place for place, group in enumerate(flight) if group.is_whole][:num]
    last = [group.version + most for place, group in enumerate(flight) if place not in places]
    is_in_time = all(sum(one <= step + k for one in last) <= num * k for k in range(most + 1))
    return places if len(places) == num and is_in_time else None


def _gone_on(answer: Answer, settings: RolloutConfig, flight: Flight) -> Flight:
    """A piece more of every completion that has not ended."""
    assert settings.partial is not None
    longest = settings.max_completion_tokens
    open_ = [(group.prompt, one) for group in flight for one in group.samples if not one.is_whole]
    prompts = [replace(prompt, ids=[*prompt.ids, *one.ids]) for prompt, one in open_]
    lengths = [min(settings.partial.tokens, longest - len(one.ids)) for _, one in open_]
    pieces = iter(answer(prompts, [one.seed for _, one in open_], lengths))
    return [
        replace(
            group, samples=[one if one.is_whole else one.with_piece(next(pieces), longest) for one in group.samples]
        )
        for group in flight
    ]
