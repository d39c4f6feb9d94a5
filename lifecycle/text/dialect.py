"""In which form a chat template takes what messages hold; found by rendering short conversations.

transformers gives a template the messages as they are: arguments that are text come out quoted from a template that
wants a mapping, and a content in parts vanishes from one that wants text. Here a template gets what it takes, and what
it takes in more than one form, as it was given.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lifecycle.text.messages import arguments_of, text_of

FIRST, SECOND = "wq7x", "kz4v"  # texts that no template has
JSON = f'{{"{FIRST}":"{SECOND}"}}'  # without the space that a template would write

type Render = Callable[[Sequence[Mapping[str, Any]]], str | None]  # None: the template fails


class Dialect:
    """What a template takes; each question costs one rendering, once."""

    def __init__(self, render: Render, is_own: bool) -> None:
        """`is_own`: it is the template of models trained here, which know no developer."""
        self._render, self._is_own = render, is_own
        self._roles_in_parts: dict[str, bool] = {}

    def spoken(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A checked message in the form that the template takes: a developer it does not know is the system."""
        given = dict(message)
        if given["role"] == "developer" and not self._takes_developer:
            given["role"] = "system"
        if isinstance(given.get("content"), list):
            given["content"] = given["content"] if self._takes_parts(given["role"]) else text_of(given)
        elif "content" in given and not self._takes_text and self._takes_parts("user"):
            given["content"] = _parts(given["content"])
        if "tool_calls" in given:
            given["tool_calls"] = [self._spoken_call(call) for call in given["tool_calls"]]
        return given

    def _spoken_call(self, call: dict[str, Any]) -> dict[str, Any]:
        arguments: Any = call["function"]["arguments"]
        if isinstance(arguments, str):
            arguments = arguments if self._takes_json else arguments_of(call)
        elif not self._takes_mapping:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return call | {"function": call["function"] | {"arguments": arguments}}

    @cached_property
    def _takes_text(self) -> bool:
        return self._shows([{"role": "user", "content": FIRST}], FIRST)

    def _takes_parts(self, role: str) -> bool:
        if role not in self._roles_in_parts:
            said = {"role": role, "content": _parts(FIRST, SECOND)}
            rendered = self._render([*self._before(role), said, *([self._user] if role == "system" else [])]) or ""
            is_printed = "'type'" in rendered or '"type"' in rendered  # the list itself, as Python or JSON has it
            self._roles_in_parts[role] = not is_printed and FIRST in rendered and SECOND in rendered
        return self._roles_in_parts[role]

    def _before(self, role: str) -> list[dict[str, Any]]:
        call = _calling({} if self._takes_mapping else "{}") if role == "tool" else []
        return call or ([self._user] if role == "assistant" else [])

    @property
    def _user(self) -> dict[str, Any]:
        return {"role": "user", "content": "a" if self._takes_text else _parts("a")}

    @cached_property
    def _takes_developer(self) -> bool:
        return not self._is_own and self._shows([{"role": "developer", "content": SECOND}, self._user], SECOND)

    @cached_property
    def _takes_mapping(self) -> bool:
        return self._shows(_calling({FIRST: SECOND}), FIRST, SECOND)

    @cached_property
    def _takes_json(self) -> bool:
        return self._shows(_calling(JSON), JSON)

    def _shows(self, messages: Sequence[Mapping[str, Any]], *texts: str) -> bool:
        rendered = self._render(messages)
        return rendered is not None and all(text in rendered for text in texts)


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _calling(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    calls = [{"id": "call00001", "type": "function", "function": function}]
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": calls}]
