"""Episodes: a model and an environment by turns, all of a step's episodes together.

Each turn of all episodes that go on is one batch of completions, and then one round of their environments.
What must hold: the tokens of an episode are those that the model was shown and wrote, none is encoded twice; it follows
from the weights, its row and the numbers of run, step, prompt, sample and turn, as far as its environment does. An
environment that fails costs its own episode: it is counted by reason, no reward is asked of it, and it teaches nothing.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.batch import Scores, shown
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.environment import Environment, Message, Played, Tool
from lifecycle.rl.environments import Environments, Said
from lifecycle.rl.openings import Conversations
from lifecycle.rl.rollouts import Complete, Score
from lifecycle.rl.sampling import Prompt, Rollout, seed_of
from lifecycle.text.chat import ChatError, Rendered
from lifecycle.text.next_turn import said
from lifecycle.text.row_files import RowError


class Episodes:
    """Plays the episodes of a stage with its environments, which are made once and used again."""

    def __init__(self, settings: RolloutConfig, conversations: Conversations) -> None:
        """Raises `ConfigError` for an environment that cannot be imported."""
        assert settings.episodes is not None
        self._settings, self._stage, self._conversations = settings.episodes, settings, conversations
        self._environments = Environments(settings.episodes.maker(), settings.episodes.timeout_s)

    def played(self, prompts: Sequence[Prompt], each: Sequence[SamplingParams], complete: Complete) -> list[Rollout]:
        """An episode of each prompt's row. `each` has a sample's settings for the whole episode."""
        episodes = [
            _Episode(place, prompt, params, self._conversations, self._stage)
            for place, (prompt, params) in enumerate(zip(prompts, each, strict=True))
        ]
        first = self._environments.reset([e.row for e in episodes], [params.seed or 0 for params in each])
        for episode, begun in zip(episodes, first, strict=True):
            episode.begin(begun)
        for turn in range(self._settings.max_turns):
            live = [episode for episode in episodes if episode.is_live]
            if not live:
                break
            turns = complete([episode.prompt for episode in live], [episode.params(turn) for episode in live])
            spoken = [episode.hear(own) for episode, own in zip(live, turns, strict=True)]
            is_last = turn == self._settings.max_turns - 1
            for episode, step in zip(live, self._environments.step([e.place for e in live], spoken), strict=True):
                episode.go_on(step, is_last=is_last)
        return [episode.rollout(self._environments.at(episode.place)) for episode in episodes]

    def scored(self, rollouts: Sequence[Rollout], score: Score) -> Scores:
        """The rewards of the sound episodes by `score`, with those of the environments; NaN for the others."""
        sound = [place for place, rollout in enumerate(rollouts) if not rollout.fault]
        own = score([rollouts[place] for place in sound]) if sound else Scores({}, [], {})
        values = {name: _spread(column, sound, len(rollouts)) for name, column in own.values.items()}
        totals = _spread(own.totals, sound, len(rollouts))
        if self._settings.environment is not None:
            rewards = [math.nan if r.fault or r.played is None else r.played.reward for r in rollouts]
            values[self._settings.log_name] = rewards
            weighted = [self._settings.weight * reward for reward in rewards]
            totals = [one + (0.0 if math.isnan(other) else other) for one, other in zip(weighted, totals, strict=True)]
        faults = _by_kind(rollout.fault for rollout in rollouts if rollout.fault)
        told = {**own.faults, **({self._settings.log_name: faults} if faults else {})}
        return replace(own, values=values, totals=totals, faults=told)

    def close(self) -> None:
        """Closes the environments."""
        self._environments.close()


class _Episode:
    """One episode on its way: the ids that the model sees, and which of them are its own."""

    def __init__(
        self,
        place: int,
        prompt: Prompt,
        params: SamplingParams,
        conversations: Conversations,
        stage: RolloutConfig,
    ) -> None:
        self.place, self.is_live = place, True
        self.row: dict[str, Any] = {**prompt.columns, "prompt": prompt.text}
        self._tools: Sequence[Tool] = ()
        self._calls: Sequence[int] | None = None
        self._asked, self._params = prompt, params
        self._conversations, self._stage = conversations, stage
        self._messages: list[Message] = []
        self._num_first = self._num_calls = 0
        self._rendered = Rendered([], [])
        self._turns: list[Rollout] = []
        self._between: list[Sequence[int]] = []  # what follows each turn but the last
        self._reward, self._fault, self._is_cut = 0.0, "", False

    @property
    def _length(self) -> int:
        """Tokens behind the first prompt."""
        return sum(map(len, self._between)) + sum(len(turn.ids) for turn in self._turns)

    @property
    def prompt(self) -> Prompt:
        """All that the model sees at its next turn."""
        parts = [part for turn, more in zip(self._turns, self._between, strict=True) for part in (turn.ids, more)]
        return replace(self._asked, ids=[*self._asked.ids, *(one for part in parts for one in part)])

    def params(self, turn: int) -> SamplingParams:
        """How the model's next turn is sampled."""
        sample = self._params.seed or 0
        changes = {
            "seed": seed_of(sample, turn) if turn else sample,
            "max_tokens": self._stage.max_completion_tokens - self._length,
            "shown_ids": self._conversations.abilities.shown_ids(self._conversations.tokenizer),
        }
        return self._params.model_copy(update=changes)

    def begin(self, step: Said) -> None:
        """The episode begins with what the environment says first."""
        self._calls = step.calls
        if step.fault:
            self.fail(step.fault)
            return
        self._messages, self._num_first, self._tools = list(step.messages), len(step.messages), step.tools
        if not self._render():
            return
        if len(self._rendered.ids) > self._stage.max_prompt_tokens:
            self.fail(f"its first messages are longer than max_prompt_tokens={self._stage.max_prompt_tokens}")
            return
        self._asked = replace(self._asked, ids=self._rendered.ids, text=deepcopy(self._messages))

    def hear(self, turn: Rollout) -> Message:
        """The model's turn, which begins where `prompt` ends, as a message."""
        abilities, tokenizer = self._conversations.abilities, self._conversations.tokenizer
        tools = [tool["function"]["name"] for tool in self._tools]
        parser = abilities.parser(tools, abilities.opens_thoughts(turn.prompt.ids, tokenizer))
        message = said(turn.text, parser, self._num_calls, abilities.call_id_length)
        self._num_calls += len(message.get("tool_calls", ()))
        self._turns.append(turn)
        self._messages.append(message)
        self._is_cut = turn.is_cut
        return message

    def go_on(self, step: Said, is_last: bool) -> None:
        """Takes the environment's answer, which the model sees if another turn follows."""
        self._calls = step.calls
        if step.fault:
            self.fail(step.fault)
            return
        self._reward += step.reward
        if step.done or self._is_cut or is_last:
            self.is_live = False
            return
        before, answer = self._rendered, len(self._messages) - 1
        self._messages += step.messages
        if not self._render():
            return
        try:
            more = self._conversations.go_on(before, self._rendered, answer, self._num_first)
        except ChatError as error:
            self.fail(str(error))
            return
        if self._length + len(more) >= self._stage.max_completion_tokens:
            self._is_cut, self.is_live = True, False
            del self._messages[answer + 1 :]
            return
        self._between.append(more)

    def _render(self) -> bool:
        """Renders the messages up to the model's next turn; whether that can be done."""
        try:
            self._rendered = self._conversations.rendered(self.row, self._tools, self._messages)
        except (ChatError, RowError) as error:
            self.fail(str(error))
            return False
        return True

    def fail(self, why: str) -> None:
        """The episode ends here, and nothing is learned of it."""
        self.is_live, self._fault = False, why

    def rollout(self, environment: Environment | None) -> Rollout:
        """The whole episode as one completion. What an environment wrote has no log-probabilities: 0 in their place.
        It was drawn from no ids."""
        ids: list[int] = []
        logprobs: list[float] = []
        kept: list[Sequence[int]] = []
        is_own: list[bool] = []
        between: list[Sequence[int]] = [*self._between, ()][: len(self._turns)]
        for turn, more in zip(self._turns, between, strict=True):
            ids += [*turn.ids, *more]
            logprobs += [*turn.logprobs, *[0.0] * len(more)]
            kept += [*turn.kept, *[()] * len(more)] if self._stage.top_k else []
            is_own += [True] * len(turn.ids) + [False] * len(more)
        messages, num_turns = self._messages[self._num_first :], len(self._turns)
        played = Played(is_own, messages, num_turns, self._reward, environment, self._calls, self._fault)
        return Rollout(self._asked, ids, logprobs, shown(messages), self._is_cut, played, kept)


def episode_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Turns, and calls of tools under TRL's names; nothing without episodes."""
    episodes = [rollout.played for rollout in rollouts if rollout.played is not None]
    if not episodes:
        return {}
    found = {"episodes/turns": sum(one.turns for one in episodes) / len(episodes)}
    counted = [one.calls for one in episodes if one.calls is not None]
    if counted:
        calls, failed = (sum(counts) for counts in zip(*counted, strict=True))
        found["tools/call_frequency"] = calls / len(episodes)
        found["tools/failure_frequency"] = failed / calls if calls else 0.0
    return found


def _by_kind(reasons: Iterable[str]) -> Counter[str]:
    """How many there are of each kind, which a reason's first words name, up to a colon; with the first of each."""
    first: dict[str, str] = {}
    return Counter(first.setdefault(reason.partition(":")[0], reason) for reason in reasons)


def _spread(values: Sequence[float], places: Sequence[int], size: int) -> list[float]:
    """Values at their places; NaN elsewhere."""
    column = [math.nan] * size
    for place, value in zip(places, values, strict=True):
        column[place] = value
    return column
