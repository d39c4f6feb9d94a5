"""Multi-turn environments: what answers a model between its turns.

A task is an `Environment` of two methods; `rl/episodes.py` lets a model play it. Only what the model itself wrote is
learned.

    class Guess(Environment):
        def reset(self, row):
            self.wanted = row["number"]
            return [{"role": "user", "content": "Guess a number up to 100."}]

        def step(self, answer):
            guess = answer["content"].strip()
            if not guess.isdecimal():
                return Step([{"role": "user", "content": "a number, please"}], reward=-0.1)
            if int(guess) == self.wanted:
                return Step(reward=1.0, done=True)
            return Step([{"role": "user", "content": "higher" if int(guess) < self.wanted else "lower"}])
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

type Message = dict[str, Any]
type Tool = dict[str, Any]  # OpenAI's: {"type": "function", "function": {"name", "description", "parameters"}}


class EpisodeError(ValueError):
    """Episodes that cannot be played at all; the message has the fix."""


@dataclass(frozen=True)
class Step:
    """An environment's answer: messages before the next turn, a reward for this one, and whether it was the last."""

    messages: list[Message] = field(default_factory=list)
    reward: float = 0.0
    done: bool = False


class Environment(ABC):
    """One task. An object runs one episode at a time, and `reset` begins anew: nothing may be left of the last one.

    Several objects run at once, each in one thread at a time. A run that was killed makes the same episodes again if
    all that is random is drawn from `seed`, which is another one in each episode and set before `reset`.
    """

    tools: Sequence[Tool] = ()
    seed: int = 0

    @abstractmethod
    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begins an episode from a row's columns: the messages that the model sees first."""
        raise NotImplementedError

    @abstractmethod
    def step(self, answer: Message) -> Step:
        """Takes the model's message: `role`, `content` and perhaps `reasoning_content` and `tool_calls`, which have
        arguments as the model wrote them. An episode in which this raises ends there, and teaches nothing."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what the environment holds; called once, after its last episode."""
        return


@dataclass(frozen=True)
class Played:
    """What an episode was, beside its tokens.

    `is_own`: of each token behind the prompt, whether the model wrote it. `messages`: those that followed the first, up
    to the model's last. `reward`: the sum of the environment's. `environment`: itself, for reward functions; None in
    processes that are only told what it says. `calls`: of tools, and how many of them failed; None if none are counted.
    `fault`: why the environment could not go on; empty if it could, and then the episode ended with the environment's
    word, its last turn, or a limit of tokens.
    """

    is_own: Sequence[bool]
    messages: Sequence[Message]
    turns: int
    reward: float
    environment: Environment | None
    calls: Sequence[int] | None = None
    fault: str = ""
