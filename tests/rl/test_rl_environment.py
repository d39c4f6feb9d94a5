"""Episodes against scripted models: turns, rewards, tools, and which tokens are the model's."""

import json
from typing import Annotated, Any

import pytest
from pydantic import Field

from lifecycle.core.isolation.confine import Limits, unavailable
from lifecycle.rl.environment import Environment, EpisodeError, Generated, Message, Step, run_episode
from lifecycle.rl.tools import ToolEnvironment, python_tool, tool_schema

closed = pytest.mark.skipif(bool(unavailable()), reason=f"code cannot be closed off here: {unavailable()}")


class Guess(Environment):
    """Guess a number."""

    def reset(self, row: Any) -> list[Message]:
        self.wanted = row["number"]
        return [{"role": "user", "content": "Guess."}]

    def step(self, answer: Message) -> Step:
        guess = int(answer["content"])
        if guess == self.wanted:
            return Step(reward=1.0, done=True)
        return Step([{"role": "user", "content": "higher" if guess < self.wanted else "lower"}], reward=-0.1)


def scripted(*messages: Message | str, cut: bool = False) -> Any:
    """A model that says these things, and writes and reads a token per character."""
    said = iter(messages)

    def generate(history: list[Message], tools: Any) -> Generated:
        del tools
        one = next(said)
        message = {"role": "assistant", "content": one} if isinstance(one, str) else one
        prompt = [ord(letter) for m in history for letter in f"{m.get('content') or ''}|"]
        own = [ord(letter) for letter in f"{message.get('content') or ''}|"]
        return Generated(message, prompt, own, [-0.5] * len(own), is_cut=cut)

    return generate


def test_turns_go_on_until_the_environment_is_done() -> None:
    episode = run_episode(Guess(), {"number": 7}, scripted("5", "9", "7", "1"))
    assert episode.end == "done"
    assert episode.rewards == [-0.1, -0.1, 1.0]
    assert episode.reward == pytest.approx(0.8)
    assert [message["content"] for message in episode.completion] == ["5", "higher", "9", "lower", "7"]


def test_an_episode_ends_at_its_limits() -> None:
    assert run_episode(Guess(), {"number": 7}, scripted("5", "6", "5"), max_turns=3).end == "turns"
    cut = run_episode(Guess(), {"number": 7}, scripted("5", "6", cut=True))
    assert (cut.end, len(cut.turns)) == ("cut", 1)


def test_only_the_models_own_tokens_are_learned() -> None:
    episode = run_episode(Guess(), {"number": 7}, scripted("5", "7"))
    tokens, mask, logprobs = episode.learned()
    assert "".join(map(chr, episode.prompt_ids)) == "Guess.|"
    assert "".join(map(chr, tokens)) == "5|higher|7|"
    assert mask == [True] * 2 + [False] * 7 + [True] * 2
    assert logprobs == [-0.5 if is_own else 0.0 for is_own in mask]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    def forgetful(history: list[Message], tools: Any) -> Generated:
        del tools
        return Generated({"role": "assistant", "content": "5"}, [len(history)], [1])

    with pytest.raises(EpisodeError, match="turn 2: its prompt does not begin with the tokens so far"):
        run_episode(Guess(), {"number": 7}, forgetful, max_turns=2).learned()


def weather(city: str, day: Annotated[int, Field(ge=0, description="days from now")] = 0) -> dict[str, Any]:
    """The weather of a city."""
    if city == "Atlantis":
        raise LookupError("no such city")
    return {"city": city, "day": day, "sky": "blue"}


def call(name: str, arguments: Any, number: int = 1) -> Message:
    asked = {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [asked]}


def test_a_functions_schema_is_its_signature() -> None:
    assert tool_schema(weather) == {
        "type": "function",
        "function": {
            "name": "weather", "description": "The weather of a city.",
            "parameters": {
                "type": "object", "required": ["city"], "additionalProperties": False,
                "properties": {
                    "city": {"type": "string"},
                    "day": {"type": "integer", "minimum": 0, "default": 0, "description": "days from now"},
                },
            },
        },
    }  # fmt: skip
    with pytest.raises(ValueError, match="say the type of 'x'"):
        tool_schema(lambda x: x)


def test_tools_answer_and_failures_are_told_to_the_model() -> None:
    def reward(row: Any, messages: Any) -> float:
        return float(messages[-1]["content"] == row["gold"])

    environment = ToolEnvironment([weather], reward)
    calls = [
        call("weather", '{"city": "Rome", "day": 2}'), call("weather", {"city": "Rome", "day": -1}),
        call("weather", "{"),
        call("wether", "{}"), call("weather", '{"city": "Atlantis"}'), call("weather", '{"town": "Rome"}'), "blue",
    ]  # fmt: skip
    episode = run_episode(environment, {"prompt": "How is Rome?", "gold": "blue"}, scripted(*calls))
    answers = [message for message in episode.completion if message["role"] == "tool"]
    assert answers[0] == {
        "role": "tool", "name": "weather", "tool_call_id": "c1",
        "content": json.dumps({"city": "Rome", "day": 2, "sky": "blue"}),
    }  # fmt: skip
    faults = ("day: Input should be", "JSONDecodeError", "no tool 'wether'", "LookupError", "city: Field")
    for answer, fault in zip(answers[1:], faults, strict=True):
        assert answer["content"].startswith("Error: ")
        assert fault in answer["content"]
    assert episode.reward == 1.0
    assert environment.counts == {"calls": 6, "failed": 5}
    again = run_episode(environment, {"prompt": [{"role": "user", "content": "x"}], "gold": "red"}, scripted("blue"))
    assert (again.reward, len(again.messages)) == (0.0, 2)


@closed
def test_the_python_tool_runs_code_closed_off() -> None:
    python = python_tool(Limits(cpu_s=1, wall_s=20.0))
    assert python("x = 3\nprint('hi')\nx * 2") == "hi\n6\n"
    assert python("x").endswith("NameError: name 'x' is not defined\n")
    assert "PermissionError" in python("open('/etc/passwd')")
    assert python("while True: pass") == "Error: the code was ended: CPU time"
    assert "ended" in python("import os; os._exit(0)")
    assert python("import sys; sys.exit(2)") == "SystemExit: 2\n"
    assert "SyntaxError" in python("x =")
    assert len(python("print('x' * 10**6)")) < 200_000
    assert tool_schema(python)["function"]["name"] == "python"
