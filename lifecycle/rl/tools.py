"""Tools: Python functions that a model may call, as an environment.

    def weather(city: str, day: Annotated[int, Field(ge=0, description="days from now")] = 0) -> str:
        '''The weather of a city.'''

    ToolEnvironment([weather, python_tool()], reward=lambda row, messages: ...)

A function's schema comes from its signature and docstring, and its arguments are checked against it. A call that fails
is answered with the error, so that the model can mend it. The user's functions run in this process; code that the model
writes runs closed off (`python_tool`).
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from lifecycle.core.isolation.confine import Limits
from lifecycle.core.isolation.pool import IsolationError
from lifecycle.evals.verifiers.base import shared_pool
from lifecycle.rl.environment import Environment, Message, Step, Tool

LONGEST_ANSWER = 8_000  # characters of a tool's answer that the model sees
PYTHON_LIMITS = Limits(cpu_s=10, wall_s=30.0)

type Reward = Callable[[Mapping[str, Any], Sequence[Message]], float]


class ToolEnvironment(Environment):
    """Answers calls of `functions` until the model says something without a call; then `reward(row, messages)` is the
    reward of the episode. The row's `prompt` begins it, text or messages."""

    def __init__(self, functions: Sequence[Callable[..., Any]], reward: Reward | None = None) -> None:
        self._functions = {function.__name__: (function, _arguments(function)) for function in functions}
        self.tools: Sequence[Tool] = [tool_schema(function) for function in functions]
        self._reward = reward
        self._row: Mapping[str, Any] = {}
        self._messages: list[Message] = []
        self.counts: Counter[str] = Counter()  # of the episode: calls, and those that failed

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's prompt."""
        self.counts.clear()
        prompt = row["prompt"]
        self._row = row
        self._messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return list(self._messages)

    def step(self, answer: Message) -> Step:
        """Runs the calls of a message, in order; done if there is none."""
        self._messages.append(answer)
        calls = answer.get("tool_calls") or []
        if not calls:
            return Step(reward=self._reward(self._row, self._messages) if self._reward else 0.0, done=True)
        answers = [self._answered(call) for call in calls]
        self._messages += answers
        return Step(answers)

    def _answered(self, call: Mapping[str, Any]) -> Message:
        asked = call.get("function") or {}
        name = str(asked.get("name"))
        self.counts["calls"] += 1
        try:
            content = self._called(name, asked.get("arguments"))
        except IsolationError:
            raise  # nothing can be run here, and no mended call would help
        except Exception as error:  # of a function of the user's, or of the model's call: the model is told
            self.counts["failed"] += 1
            content = f"Error: {type(error).__name__}: {error}"
        known = {"tool_call_id": call["id"]} if "id" in call else {}
        return {"role": "tool", "name": name, **known, "content": content[:LONGEST_ANSWER]}

    def _called(self, name: str, arguments: Any) -> str:
        if name not in self._functions:
            raise ValueError(f"there is no tool {name!r}; known: {', '.join(self._functions)}")
        function, model = self._functions[name]
        given = json.loads(arguments or "{}") if isinstance(arguments, str) or arguments is None else arguments
        try:
            read = model.model_validate(given)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, issue['loc'])) or 'arguments'}: {issue['msg']}" for issue in error.errors())
            raise ValueError("; ".join(faults)) from None
        result = function(**{field: getattr(read, field) for field in type(read).model_fields})
        return result if isinstance(result, str) else json.dumps(result, default=str)


def tool_schema(function: Callable[..., Any]) -> Tool:
    """A function as OpenAI's API describes tools."""
    parameters = _arguments(function).model_json_schema()
    parameters.pop("title", None)
    for property_ in parameters.get("properties", {}).values():
        property_.pop("title", None)
    described = {"name": function.__name__, "description": inspect.getdoc(function) or "", "parameters": parameters}
    return {"type": "function", "function": described}


def _arguments(function: Callable[..., Any]) -> type[BaseModel]:
    """A model of a function's arguments; raises `ValueError` for one whose type is not said."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            raise ValueError(f"tool {function.__name__}: say the type of {name!r}; the model is shown it")
        fields[name] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    return create_model(f"{function.__name__}_arguments", __config__=ConfigDict(extra="forbid"), **fields)


def python_tool(limits: Limits = PYTHON_LIMITS) -> Callable[[str], str]:
    """A tool that runs the model's Python, closed off (`core/isolation/confine.py`), a process per call."""
    pool = shared_pool("lifecycle.rl.python_program:run", limits, is_fresh=True)

    def python(code: str) -> str:
        """Runs Python code; returns what it prints and the value of its last expression. Each call begins anew."""
        [result] = pool.map([code])
        return result.value if not result.failure else f"Error: the code was ended: {result.failure}"

    return python
