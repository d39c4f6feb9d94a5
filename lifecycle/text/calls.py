"""Calls of tools in an answer, in the forms in which published models write them.

A form is data: the marks round a call, whether several stand in a list, the key of the arguments. Which one a model
uses is read from its chat template, which shows the model an example. What must hold: a call is of a tool that the
request has; text that only looks like one stays text. Arguments are passed on as the model wrote them.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from lifecycle.text.json_members import SPACE, Members
from lifecycle.text.parts import Part, joined, possible_start

KEYS = {"name", "arguments", "parameters", "id", "type"}  # of an object that is a call


@dataclass(frozen=True)
class CallForm:
    """How a model writes a call."""

    name: str
    sign: str  # a template that has this text uses the form
    opening: str  # stands before a call, or before a list of them
    closing: str = ""
    is_list: bool = False  # one JSON list has all calls
    arguments: str = "arguments"  # their key in the call's object
    between: str = ""  # after the opening: the tool's name, this, and the arguments' object
    is_bare: bool = False  # an answer that begins with an object is a call too
    is_single: bool = False  # the model makes one call at a time
    id_length: int = 24  # characters of a call's id
    other: tuple[str, ...] = ()  # texts of templates whose calls look alike but are not


FORMS = (
    CallForm("hermes", "<tool_call>", "<tool_call>", "</tool_call>", other=("<function=", "<arg_key>")),
    CallForm("mistral_args", "[ARGS]", "[TOOL_CALLS]", between="[ARGS]", id_length=9),
    CallForm("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", is_list=True, id_length=9),
    CallForm(
        "llama3_json", '{"name": function name, "parameters":', "<|python_tag|>", arguments="parameters", is_bare=True,
        is_single=True,
    ),
    CallForm("granite", "<|tool_call|>", "<|tool_call|>", is_list=True),
)  # fmt: skip


def form_of(template: str) -> CallForm | None:
    """The form whose example is in a chat template's source; None: it has no tools, or calls them in no known form."""
    if "tools" not in template:
        return None
    fitting = (form for form in FORMS if form.sign in template and not any(text in template for text in form.other))
    return next(fitting, None)


class CallParser:
    """Takes calls of `tools` out of an answer; the rest is text."""

    def __init__(self, form: CallForm, tools: Collection[str]) -> None:
        self._form, self._tools = form, tools
        self._held = ""  # not yet looked at
        self._raw = ""  # what a call consists of so far: its text, if it turns out to be none
        self._members = Members()
        self._name: str | None = None
        self._sent = 0  # characters of the arguments
        self._count = 0
        self._parts: list[Part] = []
        self._state: Callable[[], bool] = self._beginning if form.is_bare else self._text  # whether to go on

    def feed(self, text: str) -> list[Part]:
        """The parts that the text completes."""
        self._held += text
        while self._state():
            pass
        parts, self._parts = self._parts, []
        return joined(parts)

    def flush(self) -> list[Part]:
        """The parts that were held back: also the text of a call that has not got as far as its tool."""
        is_call = self._name is not None or self._state in (self._between_calls, self._after_call)
        text = "" if is_call else self._raw + self._held
        self._held = self._raw = ""
        return joined([Part("text", text)])

    def _beginning(self) -> bool:
        begun = self._held.lstrip()
        if begun.startswith("{"):
            self._begin_call(len(self._held) - len(begun))
            return True
        self._state = self._text if begun else self._beginning
        return bool(begun)

    def _text(self) -> bool:
        before, mark, _ = self._held.partition(self._form.opening)
        if mark:
            text = before.rstrip()
            self._say(text)
            self._held = self._held[len(text) :]
            self._begin_call(len(before) - len(text) + len(mark))
            return True
        sure = self._held[: len(self._held) - possible_start(self._held, self._form.opening)].rstrip()
        self._say(sure)
        self._held = self._held[len(sure) :]
        return False

    def _begin_call(self, length: int) -> None:
        """A call, or a list of them, whose first `length` characters are held."""
        self._take(length)
        self._state = self._named if self._form.between else self._list if self._form.is_list else self._before_call

    def _named(self) -> bool:
        """The name stands before the arguments' object, perhaps without what should be between."""
        name, mark, _ = self._held.partition(self._form.between)
        if "{" in name:
            name, mark = name.partition("{")[0], ""
        elif not mark:
            return not any(map(self._may_be, self._tools)) and self._give_up()
        if name.strip() not in self._tools:
            return self._give_up()  # before it is taken: what looks like a name may have the opening of a call
        self._take(len(name) + len(mark))
        self._open_object()
        for character in json.dumps({"name": name.strip()})[:-1] + ', "arguments": ':  # as the other forms have it
            self._members.feed(character)
        self._state = self._arguments
        return True

    def _may_be(self, tool: str) -> bool:
        """Whether what is held may become a tool's name and what stands after it."""
        said = self._held.lstrip()
        return tool.startswith(said) or (
            said.startswith(tool) and self._form.between.startswith(said[len(tool) :].lstrip())
        )

    def _arguments(self) -> bool:
        self._take(self._members.feed(self._held))
        return self._go_on(is_done="arguments" in self._members.whole)

    def _list(self) -> bool:
        self._take_space()
        if not self._held:
            return False
        if self._held[0] != "[":
            return self._give_up()
        self._take(1)
        self._state = self._before_call
        return True

    def _before_call(self) -> bool:
        self._take_space()
        if self._held:
            self._open_object()
            self._state = self._call
        return bool(self._held)

    def _open_object(self) -> None:
        self._members, self._name, self._sent = Members(), None, 0

    def _call(self) -> bool:
        self._take(self._members.feed(self._held))
        return self._go_on(self._members.is_done)

    def _go_on(self, is_done: bool) -> bool:
        if self._members.is_broken or not self._is_plausible():
            return self._give_up()
        self._send(is_done)
        if not is_done:
            return bool(self._held)
        if self._name is None:
            return self._give_up()
        if not self._sent:
            self._parts.append(Part("call", "{}", self._count))
        self._end_call()
        return True

    def _is_plausible(self) -> bool:
        """Whether what has come may be the beginning of a call, of a tool that there is."""
        members = self._members
        is_known = "name" not in members.whole or self._said_name() in self._tools
        if self._said_arguments()[:1] not in ("", "{"):
            return False
        return self._name is not None or (members.values.keys() <= KEYS and is_known)

    def _said_name(self) -> str | None:
        try:
            name = json.loads(self._members.values["name"])
        except ValueError:
            return None
        return name if isinstance(name, str) else None

    def _said_arguments(self) -> str:
        """Under either key: some models confuse them."""
        values = self._members.values
        return next((values[key] for key in ("arguments", "parameters") if key in values), "")

    def _send(self, is_done: bool) -> None:
        """Passes on what is new of a call whose tool is known, once its arguments have begun."""
        arguments = self._said_arguments()
        if self._name is None and "name" in self._members.whole and (arguments or is_done):
            self._name = self._said_name()
            self._parts.append(Part("call", "", self._count, self._name))
        if self._name is not None and len(arguments) > self._sent:
            self._parts.append(Part("call", arguments[self._sent :], self._count))
            self._sent = len(arguments)

    def _end_call(self) -> None:
        self._count += 1
        self._name, self._raw = None, ""
        self._state = self._between_calls if self._form.is_list else self._after_call

    def _between_calls(self) -> bool:
        self._take_space()
        if not self._held:
            return False
        if self._held[0] in ",]":
            self._state = self._before_call if self._held[0] == "," else self._after_call
            self._held = self._held[1:]
        else:
            self._state = self._text
        self._raw = ""
        return True

    def _after_call(self) -> bool:
        held = self._held.lstrip()
        if self._form.closing and held and self._form.closing.startswith(held[: len(self._form.closing)]):
            if len(held) < len(self._form.closing):
                return False
            held = held.removeprefix(self._form.closing).lstrip()
        self._held, self._raw = held, ""
        if held:
            self._state = self._text
        return bool(held)

    def _give_up(self) -> bool:
        """It is no call, or none that goes on: what came of it is text, unless its tool was named."""
        text = "" if self._name is not None else self._raw
        self._count += self._name is not None
        self._name, self._raw = None, ""
        self._say(text)
        self._state = self._text
        return True

    def _take(self, length: int) -> None:
        self._raw += self._held[:length]
        self._held = self._held[length:]

    def _take_space(self) -> None:
        self._take(len(self._held) - len(self._held.lstrip(SPACE)))

    def _say(self, text: str) -> None:
        self._parts.append(Part("text", text))
