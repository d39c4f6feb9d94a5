"""Multi-turn environments: what answers a model between its turns, and which tokens of an episode are the model's.

A task is an `Environment` of two methods. `run_episode` joins one with anything that generates; what it returns has the
messages, the rewards, and the tokens with a mask: only what the model itself wrote is learned.

    class Guess(Environment):
        def reset(self, row):
            self.wanted = row["number"]
            return [{"role": "user", "content": "Guess a number up to 100."}]

        def step(self, answer):
            guess = int(answer["content"])
            if guess == self.wanted:
                return Step(reward=1.0, done=True)
            return Step([{"role": "user", "content": "higher" if guess < self.wanted else "lower"}])
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

type Message = dict[str, Any]
type Tool = dict[str, Any]  # OpenAI's: {"type": "function", "function": {"name", "description", "parameters"}}


class EpisodeError(ValueError):
    """An episode that cannot be learned from; the message has the fix."""


@dataclass(frozen=True)
class Step:
    """An environment's answer: messages before the next turn, a reward for this one, and whether it was the last."""

    messages: list[Message] = field(default_factory=list)
    reward: float = 0.0
    done: bool = False


class Environment(ABC):
    """One task. An object runs one episode at a time, and `reset` begins anew: nothing may be left of the last one."""

    tools: Sequence[Tool] = ()

    @abstractmethod
    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begins an episode from a row's columns: the messages that the model sees first."""
        raise NotImplementedError

    @abstractmethod
    def step(self, answer: Message) -> Step:
        """Takes the model's message (`role`, `content`, `tool_calls`)."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what the environment holds; called once, after its last episode."""
        return


@dataclass(frozen=True)
class Generated:
    """A turn of the model: its message; where tokens are known, those of its prompt and its own, with their
    log-probabilities. `is_cut`: it ended at a limit, not by itself."""

    message: Message
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    is_cut: bool = False


type Generate = Callable[[list[Message], Sequence[Tool]], Generated]


@dataclass(frozen=True)
class Episode:
    """What happened: the messages, of which `prompt_length` were there first; the model's turns, each with its reward;
    and why it ended: `done` (the environment's word), `turns` or `cut`."""

    messages: list[Message]
    prompt_length: int
    turns: list[Generated]
    rewards: list[float]
    end: str

    @property
    def reward(self) -> float:
        """The sum over the turns."""
        return sum(self.rewards)

    @property
    def completion(self) -> list[Message]:
        """What followed the first messages, the model's and the environment's: what reward functions get."""
        return self.messages[self.prompt_length :]

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the model's first."""
        return list(self.turns[0].prompt_ids) if self.turns else []

    def learned(self) -> tuple[list[int], list[bool], list[float]]:
        """Tokens after `prompt_ids`, whether each is the model's own, and its log-probability (0 for others).

        Raises `EpisodeError` if a turn's prompt does not begin with all tokens before it: then the template has changed
        what the model wrote, and its log-probabilities belong to other contexts.
        """
        start = before = self.prompt_ids
        mask, logprobs = [], []
        for place, turn in enumerate(self.turns):
            prompt = list(turn.prompt_ids)
            if prompt[: len(before)] != before:
                raise EpisodeError(
                    f"turn {place + 1}: its prompt does not begin with the tokens so far; the chat template rewrites "
                    "earlier turns (drops thoughts, say). Choose one that keeps them"
                )
            added = len(prompt) - len(before)
            mask += [False] * added + [True] * len(turn.ids)
            logprobs += [0.0] * added + (list(turn.logprobs) or [0.0] * len(turn.ids))
            before = [*prompt, *turn.ids]
        return before[len(start) :], mask, logprobs


def run_episode(environment: Environment, row: Mapping[str, Any], generate: Generate, max_turns: int = 8) -> Episode:
    """One episode: the environment and the model by turns, until it is done, `max_turns` are over, or a turn is cut."""
    messages = list(environment.reset(row))
    episode = Episode(messages, len(messages), [], [], "turns")
    for _ in range(max_turns):
        turn = generate(list(messages), environment.tools)
        messages.append(turn.message)
        step = environment.step(turn.message)
        episode.turns.append(turn)
        episode.rewards.append(float(step.reward))
        messages += step.messages
        if step.done or turn.is_cut:
            return Episode(
                messages, episode.prompt_length, episode.turns, episode.rewards, "done" if step.done else "cut"
            )
    return episode
