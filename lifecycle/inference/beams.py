"""Beam search over the tokens of one output: which beams go on, and which outputs are the best. No device, no model.

The rules are transformers' (5.24, `GenerationMixin._beam_search`): of the likeliest continuations of all beams those
that end are finished, with their log-probability divided by a power of their length as the score, and the likeliest
others go on, until no beam can get among the best. What must hold: with a beam for each possible beginning and
`early_stopping: never` the result is that of an exhaustive search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from lifecycle.core.config import Section

MAX_BEAMS = 16


class BeamConfig(Section):
    """How outputs are searched for, by transformers' names."""

    num_beams: int = Field(default=4, ge=1, le=MAX_BEAMS)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)  # the power; 0: none, above 1: longer outputs
    # True: once there are `num_beams` outputs. False: once no beam would be among the best with its present length.
    # never: once none can be with any length
    early_stopping: bool | Literal["never"] = False


@dataclass(frozen=True)
class Hypothesis:
    """Tokens and the sum of their log-probabilities; an output has its `score` and the id that ended it."""

    tokens: tuple[int, ...]
    logprob: float
    score: float = 0.0


class _Candidate(NamedTuple):
    logprob: float
    parent: int
    token: int


class Beams:
    """The search for one output: `step` with what may follow each of the `running` beams, until none is left."""

    def __init__(
        self, config: BeamConfig, max_tokens: int, num_stop_ids: int, is_end: Callable[[tuple[int, ...]], bool]
    ) -> None:
        """`is_end`: whether an output ends with the last of its tokens; at most `num_stop_ids` tokens do by
        themselves."""
        self._config, self._max_tokens, self._is_end = config, max_tokens, is_end
        self._num_candidates = max(2, 1 + num_stop_ids) * config.num_beams
        self.running = [Hypothesis((), 0.0)]
        self.finished: list[Hypothesis] = []  # at most `num_beams`, the best first

    def step(self, following: Sequence[Sequence[tuple[int, float]]]) -> list[int]:
        """Adds a token: `following` has the likeliest next (id, log-probability) pairs of each running beam. Which
        beams the running ones now come from; none at the end of the search."""
        candidates = [
            _Candidate(beam.logprob + logprob, parent, token)
            for parent, (beam, pairs) in enumerate(zip(self.running, following, strict=True))
            for token, logprob in pairs
        ]
        candidates.sort(key=lambda own: (-own.logprob, own.parent, own.token))
        going: list[tuple[int, Hypothesis]] = []
        ended: list[Hypothesis] = []
        for rank, own in enumerate(candidates[: self._num_candidates]):
            new = Hypothesis((*self.running[own.parent].tokens, own.token), own.logprob)
            if len(new.tokens) < self._max_tokens and not self._is_end(new.tokens):
                going.append((own.parent, new))
            elif rank < self._config.num_beams:
                ended.append(Hypothesis(new.tokens, new.logprob, self._score(new.logprob, len(new.tokens))))
        if not (self._is_full and self._config.early_stopping is True):
            every = [*self.finished, *ended]
            self.finished = sorted(every, key=lambda own: -own.score)[: self._config.num_beams]
        going = going[: self._config.num_beams]
        self.running = [beam for _, beam in going]
        if not self._can_improve():
            self.running = []
        return [parent for parent, _ in going][: len(self.running)]

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._config.num_beams

    def _can_improve(self) -> bool:
        """Whether a running beam may still become one of the best."""
        if not self.running or not self._is_full:
            return bool(self.running)
        if self._config.early_stopping is True:
            return False
        is_longest = self._config.early_stopping == "never" and self._config.length_penalty > 0
        length = self._max_tokens if is_longest else len(self.running[0].tokens)
        return self._score(self.running[0].logprob, length) > self.finished[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return logprob / length**self._config.length_penalty
