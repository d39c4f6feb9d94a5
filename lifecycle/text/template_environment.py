"""The jinja2 environment of chat templates: transformers' functions in a sandbox, with contents that stay traced.

Templates are written for transformers' `apply_chat_template` (5.24, `utils/chat_template_utils.py`,
`_compile_jinja_template`): an immutable sandbox with `raise_exception`, `strftime_now`, a `tojson` without HTML's
escapes, `{% generation %}` blocks and loop controls. What must hold: rendered text is traced (`text/traced.py`). So
outputs are joined as they are, not through `str`, and a filter that would make plain text of a content is refused.
"""

import functools
import itertools
import json
import re
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.compiler import Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.nodes import CallBlock, Concat, ExtensionAttribute, Node, Template
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lifecycle.text.traced import UNTRACED, Traced, changed, concatenated, has_content, plain, refuse

# Filters that use the traced methods, or only look at a text.
TRACING = {"count", "d", "default", "first", "last", "length", "list", "lower", "trim", "upper", "wordcount"}
# Filters that make one text of one text.
CHANGING = {"capitalize", "indent", "title", "truncate", "wordwrap"}


class GenerationMarks(Extension):
    """`{% generation %}`: what the assistant says. The text of a block has the block's number, unlike all others."""

    tags = {"generation"}  # noqa: RUF012
    _numbers = itertools.count()

    def parse(self, parser: Parser) -> Node:
        """The block's body, in a call of `_said`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return concatenated([caller()]).written_in(next(self._numbers))


def has_marks(template: Template) -> bool:
    """Whether a parsed template marks what the assistant says."""
    return any(node.name == "_said" for node in template.find_all(ExtensionAttribute))


class TracingCode(NativeCodeGenerator):
    """Python code of a template that writes values as they are, also those joined by `~`."""

    def visit_Concat(self, node: Concat, frame: Frame) -> None:
        """`a ~ b`, joined as output is."""
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Renders chat templates as transformers does, to `Traced` text."""

    code_generator_class = TracingCode
    globals: dict[str, Any]
    filters: dict[str, Callable[..., Any]]

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now`: what `strftime_now` tells a template that asks for the date."""
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationMarks])
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": lambda form: now().strftime(_plain(form)),
            "dict": _Dict(), "namespace": _Namespace,
        }  # fmt: skip
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"join": _join, "replace": _replace, "safe": _text, "string": _text, "tojson": _tojson}

    @staticmethod
    def concat(parts: Iterable[Any]) -> Traced:  # pyrefly: ignore[bad-override] - Jinja's is `"".join`
        """Joins what a template, a block or a macro writes."""
        return concatenated(map(_text, parts))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function for a template; a method of plain text that takes others is that of traced text."""
        text = getattr(obj, "__self__", None)
        if isinstance(text, str) and (obj.__name__ == "join" or _has_content([*args, *kwargs.values()])):
            if obj.__name__ in UNTRACED:
                refuse()
            obj = getattr(concatenated([text]), obj.__name__)
        return super().call(context, obj, *args, **kwargs)


class _Dict:
    """`dict(...)` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """`namespace(...)` whose names do not begin with `_`: Python's own attributes stay out of reach."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a name may be self
        Namespace.__init__(args[0])
        for name, value in dict(*args[1:], **kwargs).items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, got {name!r}")
        super().__setitem__(name, value)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if name in TRACING:
        return function

    @functools.wraps(function)  # keeps jinja2's mark of filters that take its context
    def checked(*args: Any, **kwargs: Any) -> Any:
        place = next((i for i, arg in enumerate(args) if isinstance(arg, Traced)), None)
        others = () if place is None else (*args[place + 1 :], *kwargs.values())
        if name in CHANGING and place is not None and not any(isinstance(other, str) for other in others):
            return changed(args[place], lambda text: function(*args[:place], text, *args[place + 1 :], **kwargs))
        if any(isinstance(arg, Traced) and has_content(arg) for arg in (*args, *kwargs.values())):
            raise ValueError(f"filter {name!r} on a message's content is not supported")
        return function(*map(_plain, args), **{key: _plain(arg) for key, arg in kwargs.items()})

    return checked


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, Traced) else value


def _has_content(value: Any) -> bool:
    """Whether a text, or one in a list or mapping, is a message's."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return any(map(_has_content, value)) if isinstance(value, list | tuple) else (
        isinstance(value, Traced) and has_content(value)
    )  # fmt: skip


def _join(values: Iterable[Any], separator: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        raise ValueError("filter 'join' with an attribute is not supported; use map(attribute=...) | join")
    return concatenated([separator]).join(map(_text, values))


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    return concatenated([_text(text)]).replace(old, new, -1 if count is None else count)


def _text(value: Any) -> str:
    """As output writes a value: lists and mappings as Python does."""
    if isinstance(value, dict | list | tuple):
        return _written(value, repr, repr)
    return value if isinstance(value, str) else str(value)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    def dumps(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)

    return _written(_sorted(value) if sort_keys else value, dumps, dumps)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(member) for key, member in sorted(value.items())}
    return [_sorted(member) for member in value] if isinstance(value, list | tuple) else value


def _written(value: Any, write: Callable[[Any], str], quote: Callable[[str], str]) -> str:
    """What `write` makes of a value, whose texts stay traced: each is first written as a mark that no text has."""
    texts: list[Traced] = []
    name = secrets.token_hex(16)

    def marked(value: Any) -> Any:
        if isinstance(value, Traced):
            texts.append(value)
            return f"{name}.{len(texts) - 1}"
        if isinstance(value, dict):
            return {marked(key): marked(member) for key, member in value.items()}
        return type(value)(map(marked, value)) if isinstance(value, list | tuple) else value

    parts = re.split(rf"[\"']{name}\.(\d+)[\"']", write(marked(value)))
    return concatenated(texts[int(part)].quoted(quote) if i % 2 else part for i, part in enumerate(parts))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(_plain(message))


def compile_error(error: TemplateError) -> str:
    """What is wrong with a template's source, with the line."""
    return f"{error.message} (line {getattr(error, 'lineno', '?')})"
