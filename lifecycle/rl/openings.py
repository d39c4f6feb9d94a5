"""How an episode begins and goes on, as tokens; and, before anything is trained, whether it can.

What must hold: rows, environment and chat template are checked here, by the functions that rollouts use.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from lifecycle.core.deadlines import Failed, in_threads
from lifecycle.rl.environment import Environment, EpisodeError, Message, Tool
from lifecycle.rl.episode_config import EpisodesConfig
from lifecycle.text.abilities import Abilities
from lifecycle.text.chat import ChatError, ChatTemplate, Rendered
from lifecycle.text.next_turn import RewrittenError, next_turn, renderable
from lifecycle.text.row_encoder import EncodedPrompt, RowEncoder, tools_of
from lifecycle.text.row_files import RowError

# What no template has, so that it is seen where a template leaves it out.
SAID, ANSWERED, REPLIED, THOUGHT = "wq7x", "kz4v", "jh2b", "fy9p"
QUESTION: Message = {"role": "user", "content": SAID}
ANSWER: Message = {"role": "assistant", "content": ANSWERED}
REPLY: Message = {"role": "user", "content": REPLIED}


class Conversations:
    """Conversations of a run's rows as tokens, by its chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self.abilities, self.tokenizer = Abilities.of(template.source), template.tokenizer
        self._encoder, self._stop_ids = RowEncoder(template), frozenset(template.stop_ids)

    def rendered(self, row: Mapping[str, Any], tools: Sequence[Tool], messages: Sequence[Message]) -> Rendered:
        """Messages up to where the model goes on, which is told of these tools; raises `ChatError` and `RowError`."""
        return self._encoder.open_conversation({**row, "tools": list(tools)}, list(map(renderable, messages)))

    def go_on(self, before: Rendered, after: Rendered, answer: int, first: int) -> list[int]:
        """The ids that follow an answer, as `next_turn` has them."""
        return next_turn(before, after, answer, first, self.tokenizer, self._stop_ids)

    def require_turns(self, row: Mapping[str, Any], tools: Sequence[Tool]) -> None:
        """Raises `EpisodeError` for a chat template by which no episode could go on: one without a place for tools, or
        that rewrites earlier turns."""
        if tools and not self.abilities.calls_tools:
            raise EpisodeError(
                "episodes: there are tools, and the chat template has no place for them, or for calls in a known form; "
                "give the tokenizer's folder a template with tools (docs/tools.md)"
            )
        variables = {name: row[name] for name in ("chat_template_kwargs",) if name in row}
        try:
            for answer, reply in self._probes(tools):
                before = self.rendered(variables, tools, [QUESTION])
                after = self.rendered(variables, tools, [QUESTION, answer, reply])
                self.go_on(before, after, 1, 1)
        except RewrittenError as error:
            raise EpisodeError(f"episodes: {error}") from None
        except ChatError as error:
            raise EpisodeError(f"episodes: the chat template takes no turns after an answer: {error}") from None

    def _probes(self, tools: Sequence[Tool]) -> list[tuple[Message, Message]]:
        """Answers with what follows them: with a call if there are tools, and with thoughts if the model has some."""
        answer, reply = ANSWER, REPLY
        if tools:
            name, call_id = tools[0]["function"]["name"], "0" * self.abilities.call_id_length
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
            answer = {"role": "assistant", "content": "", "tool_calls": [call]}
            reply = {"role": "tool", "name": name, "tool_call_id": call_id, "content": REPLIED}
        thinking = [(answer | {"reasoning_content": THOUGHT}, reply)] if self.abilities.marks else []
        return [(answer, reply), *thinking]


class Openings:
    """What a stage with episodes makes of its rows: the prompt is what its environment says first."""

    def __init__(self, settings: EpisodesConfig, conversations: Conversations) -> None:
        self._settings, self._conversations = settings, conversations
        self._make = settings.maker()
        self._environment: Environment | None = None

    def __call__(self, encoded: EncodedPrompt) -> EncodedPrompt:
        """The row with the ids of its first messages; raises `EpisodeError`, or `RowError` for a row that the
        environment does not take."""
        row = {**encoded.columns, "prompt": encoded.prompt}
        if self._environment is None:
            self._environment = self._make()
            self._conversations.require_turns(row, shown_tools(self._environment, row))
        reset = partial(self._environment.reset, deepcopy(row))
        [messages] = in_threads([reset], self._settings.timeout_s, 1)
        if isinstance(messages, Failed):
            raise RowError(f"the environment {self._settings.log_name} does not take the row: reset: {messages.why}")
        if fault := first_fault(messages):
            raise RowError(f"the environment {self._settings.log_name}: {fault}")
        ids = self._conversations.rendered(row, shown_tools(self._environment, row), messages).ids
        return EncodedPrompt(ids, encoded.prompt, encoded.columns)

    def close(self) -> None:
        """Closes the environment that it has asked."""
        if self._environment is not None:
            self._environment.close()


def shown_tools(environment: Environment, row: Mapping[str, Any]) -> list[Tool]:
    """What the model is told of: the environment's tools, then the row's own. Raises `RowError`."""
    own = [dict(tool) for tool in tools_of(row) or ()]
    return [*environment.tools, *(tool for tool in own if tool not in environment.tools)]


def first_fault(messages: Any) -> str:
    """Why what `reset` returned cannot begin a conversation; empty if it can."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "reset must return a list of messages, one at least"
    if messages[-1].get("role") == "assistant":
        return "reset's last message is the assistant's"
    return json_fault("reset's messages", messages)


def json_fault(what: str, said: Sequence[Mapping[str, Any]]) -> str:
    """Why other processes cannot be told of what an environment says; empty if they can."""
    try:
        json.dumps(said)
    except (TypeError, ValueError, RecursionError) as error:
        return f"{what} are no JSON: {error}"
    return ""
