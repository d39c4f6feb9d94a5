"""Messages as people have them: checked, and made plain.

A message is a mapping of `role`, `content` (text, or a list of parts of text) and the keys that its role may have. What
must hold: nothing vanishes. An unknown key or part is refused; a key whose value is None holds nothing, as in columns
of Parquet, which have all keys of all rows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of one thing, as in transformers 5.24
KEYS: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, ("role", "content", "name"))
KEYS["assistant"] += ("tool_calls", *THOUGHTS)
KEYS["tool"] += ("tool_call_id",)
CALL_KEYS = ("id", "type", "function")
FUNCTION_KEYS = ("name", "arguments", "content_type")  # the last is gpt-oss's

type Message = Mapping[str, Any]


class ChatError(ValueError):
    """Messages that cannot be rendered, or a template that is unsafe to use."""


def check_messages(messages: Any, roles: Sequence[str] = ROLES) -> list[dict[str, Any]]:
    """The messages with what they hold, in one form: no key is None, thoughts are under all names that templates read,
    and a call is `{"type": "function", "function": {"name": .., "arguments": ..}}`.

    Raises `ChatError` unless they are a non-empty list of mappings with one of `roles` and the keys that it may have.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ChatError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ChatError("messages: the list is empty; a conversation needs at least one message")
    return [_checked(message, number, roles) for number, message in enumerate(messages, 1)]


def text_of(message: Message) -> str:
    """The text of a message's content: its parts joined, empty if it has none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def told(message: Message) -> Iterator[str]:
    """Every text that a message holds: parts of its content, thoughts, names and arguments of calls."""
    content = message.get("content") or ""
    yield from [content] if isinstance(content, str) else (part["text"] for part in content)
    yield message.get(THOUGHTS[0], "")
    for call in message.get("tool_calls", ()):
        yield call["function"]["name"]
        yield from _texts(arguments_of(call))


def arguments_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a checked call."""
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for member in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(member)


def _checked(message: Any, number: int, roles: Sequence[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ChatError(f"message {number}: expected a mapping with role and content, got {type(message).__name__}")
    plain = {key: value for key, value in message.items() if value is not None}
    role = plain.get("role")
    if not isinstance(role, str) or role not in roles:
        raise ChatError(f"message {number}: unknown role {role!r}; known: {', '.join(roles)}")
    where = f"message {number} ({role})"
    if unknown := [key for key in plain if key not in KEYS[role]]:
        raise ChatError(
            f"{where}: unknown key {unknown[0]!r}; known: {', '.join(KEYS[role])}. Remove it, or give it another name"
        )
    if "tool_calls" in plain:
        calls = _calls(plain.pop("tool_calls"), where)
        plain |= {"tool_calls": calls} if calls else {}
    _check_texts(plain, where)
    return _with_thoughts(plain, where)


def _check_texts(plain: dict[str, Any], where: str) -> None:
    for key in ("name", "tool_call_id", *THOUGHTS):
        if not isinstance(plain.get(key, ""), str):
            raise ChatError(f"{where}: {key} must be text, got {type(plain[key]).__name__}")
    content = plain.get("content")
    if isinstance(content, list | tuple):
        plain["content"] = [_part(part, where) for part in content]
    elif content is None and "tool_calls" in plain:
        plain["content"] = ""
    elif not isinstance(content, str):
        raise ChatError(f"{where}: content must be text, got {type(content).__name__}")


def _part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ChatError(f"{where}: a part of its content is {kind!r}; only {{'type': 'text', 'text': ..}} is supported")
    if more := [key for key, value in part.items() if key not in ("type", "text") and value is not None]:
        raise ChatError(f"{where}: a part of its content has {more[0]!r}; known: type, text")
    return {"type": "text", "text": part["text"]}


def _with_thoughts(plain: dict[str, Any], where: str) -> dict[str, Any]:
    given = {plain[key] for key in THOUGHTS if key in plain}
    if len(given) > 1:
        names = " and ".join(key for key in THOUGHTS if key in plain)
        raise ChatError(f"{where}: {names} are names of one thing and differ; give one of them")
    return plain | {key: thoughts for thoughts in given for key in THOUGHTS[:2]}


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise ChatError(f"{where}: tool_calls must be a list, got {type(calls).__name__}")
    return [_call(call, f"{where}, call {number}") for number, call in enumerate(calls, 1)]


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call as OpenAI has it; also given flat, as a mapping of name and arguments."""
    if not isinstance(call, Mapping):
        raise ChatError(f"{where}: expected a mapping with function, got {type(call).__name__}")
    held = {key: value for key, value in call.items() if value is not None}
    if "function" not in held and "name" in held:
        inner = {key: held.pop(key) for key in FUNCTION_KEYS if key in held}
        held["function"] = inner
    function = held.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError(f"{where}: expected function: {{'name': .., 'arguments': ..}}")
    function = {key: value for key, value in function.items() if value is not None}
    unknown = [key for key in held if key not in CALL_KEYS] + [key for key in function if key not in FUNCTION_KEYS]
    if unknown:
        raise ChatError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join((*CALL_KEYS, *FUNCTION_KEYS))}")
    if held.get("type", "function") != "function":
        raise ChatError(f"{where}: its type is {held['type']!r}; only calls of functions are supported")
    arguments = _arguments(function.get("arguments"), where)
    return held | {"type": "function", "function": function | {"arguments": arguments}}


def _arguments(arguments: Any, where: str) -> dict[str, Any] | str:
    """Arguments as they are given, text if it is a JSON object; those of a call without any are empty."""
    if arguments is None or arguments == "":
        return {}
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:  # the second for a thousand brackets
        raise ChatError(f"{where}: its arguments are not JSON ({error})") from None
    if not isinstance(value, Mapping):
        raise ChatError(f"{where}: its arguments are no object but {type(value).__name__}")
    return arguments if isinstance(arguments, str) else dict(arguments)
