"""Tools as an environment: schemas, calls and their errors, and Python that runs closed off."""

import json
from typing import Annotated, Any

import pytest
from pydantic import Field

from lifecycle.core.isolation.confine import Limits, unavailable
from lifecycle.rl.environment import Message, Step
from lifecycle.rl.tools import ToolEnvironment, python_tool, tool_schema

closed = pytest.mark.skipif(bool(unavailable()), reason=f"code cannot be closed off here: {unavailable()}")


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
        call("weather", "{"), call("wether", "{}"), call("weather", '{"city": "Atlantis"}'),
        call("weather", '{"town": "Rome"}'),
    ]  # fmt: skip
    assert environment.reset({"prompt": "How is Rome?", "gold": "blue"}) == [
        {"role": "user", "content": "How is Rome?"}
    ]
    steps = [environment.step(one) for one in calls]
    assert not any(step.done or step.reward for step in steps)
    answers = [message for step in steps for message in step.messages]
    assert answers[0] == {
        "role": "tool", "name": "weather", "tool_call_id": "c1",
        "content": json.dumps({"city": "Rome", "day": 2, "sky": "blue"}),
    }  # fmt: skip
    faults = ("day: Input should be", "JSONDecodeError", "no tool 'wether'", "LookupError", "city: Field")
    for answer, fault in zip(answers[1:], faults, strict=True):
        assert answer["content"].startswith("Error: ")
        assert fault in answer["content"]
    assert environment.step({"role": "assistant", "content": "blue"}) == Step(reward=1.0, done=True)
    assert environment.counts == {"calls": 6, "failed": 5}
    environment.reset({"prompt": [{"role": "user", "content": "x"}], "gold": "red"})
    assert environment.step({"role": "assistant", "content": "blue"}).reward == 0.0 and not environment.counts


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
