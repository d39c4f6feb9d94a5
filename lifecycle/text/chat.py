"""Chat templates: messages to token ids, with a mask of the assistant's tokens.

A template is jinja2 in the dialect of HF tokenizers, run in an immutable sandbox. What must hold: nobody can inject a
turn. The template's own text may name special tokens; a message's content is always encoded as plain text. To tell them
apart, each content is put into the template between two marks that occur in no content, and the rendered text is split
at the marks. A template that cuts or changes a content (other than stripping it) is rejected, since it would hide the
marks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lifecycle.core.files import write_text
from lifecycle.text.interface import IM_END, IM_START, Tokenizer, read_config

TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant")
# Errors that running an untrusted template may raise: jinja2's, and those of its expressions and the sandbox's limits.
TEMPLATE_ERRORS = (
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

type Message = Mapping[str, str]


class ChatError(ValueError):
    """Messages that cannot be rendered, or a template that is unsafe to use."""


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and, for each, whether it is the assistant's."""

    ids: list[int]
    assistant_mask: list[bool]


class _Content(str):
    """A content between its marks; stripping applies to the content inside."""

    __slots__ = ("inside", "marks")
    inside: str
    marks: tuple[str, str]

    def __new__(cls, inside: str, marks: tuple[str, str]) -> "_Content":
        self = super().__new__(cls, marks[0] + inside + marks[1])
        self.inside, self.marks = inside, marks
        return self

    def strip(self, chars: str | None = None, /) -> "_Content":
        return _Content(self.inside.strip(chars), self.marks)

    def lstrip(self, chars: str | None = None, /) -> "_Content":
        return _Content(self.inside.lstrip(chars), self.marks)

    def rstrip(self, chars: str | None = None, /) -> "_Content":
        return _Content(self.inside.rstrip(chars), self.marks)


class ChatTemplate:
    """A template bound to a tokenizer.

    Raises `ChatError` for a template that is not valid jinja2, and for the default template with a tokenizer that lacks
    its special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, source: str = DEFAULT_TEMPLATE) -> None:
        self.tokenizer = tokenizer
        self.source = source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatError(f"chat template: {error.message} (line {getattr(error, 'lineno', '?')})") from None
        missing = [name for name in (IM_START, IM_END) if name in source and name not in tokenizer.special_ids]
        if missing:
            raise ChatError(
                f"chat template: the tokenizer has no special token {' or '.join(missing)}; "
                f"give the {TEMPLATE_FILE} that belongs to it, or list them in its tokenizer_config.json"
            )

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """The folder's own template, or the default without one."""
        return cls(tokenizer, read_template(folder) or DEFAULT_TEMPLATE)

    def save(self, folder: Path) -> None:
        """Writes the template's source as `chat_template.jinja`."""
        write_text(folder / TEMPLATE_FILE, self.source)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an assistant's turn: end of text, and the token the template puts after a turn."""
        probe = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        said = [i for i, is_said in zip(probe.ids, probe.assistant_mask, strict=True) if is_said]
        ends = [self.tokenizer.eos_id, *(i for i in said[-1:] if self.tokenizer.is_special(i))]
        return list(dict.fromkeys(ends))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
        """Ids of the conversation; the mask covers each assistant content and the token that ends its turn.

        Raises `ChatError` for no messages, an unknown role, a content that is not text, and a template that fails.
        """
        check_messages(messages)
        marks = _Marks(messages)
        text = self._run(marks.messages, add_generation_prompt)
        ids: list[int] = []
        mask: list[bool] = []
        after_assistant = False
        for part, index in marks.split(text):
            is_assistant = index is not None and messages[index]["role"] == "assistant"
            part_ids = self.tokenizer.encode_template(part) if index is None else self.tokenizer.encode(part)
            ends = self._turn_end(part_ids) if after_assistant and index is None else 0
            ids += part_ids
            mask += [is_assistant or i < ends for i in range(len(part_ids))]
            after_assistant = is_assistant
        self._refuse_doubled(ids)
        return Rendered(ids, mask)

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        names = {token_id: name for name, token_id in self.tokenizer.special_ids.items()}
        tokens = {
            "bos_token": names[self.tokenizer.bos_id],
            "eos_token": names[self.tokenizer.eos_id],
            "pad_token": names[self.tokenizer.pad_id],
        }
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokens)
        except ChatError:
            raise
        except TEMPLATE_ERRORS as error:
            raise ChatError(f"chat template: {error}") from None

    def _turn_end(self, ids: list[int]) -> int:
        """The number of leading ids that end the turn: up to the first special token, if there is one."""
        return next((i + 1 for i, token_id in enumerate(ids) if self.tokenizer.is_special(token_id)), 0)

    def _refuse_doubled(self, ids: list[int]) -> None:
        for name, token_id in (("BOS", self.tokenizer.bos_id), ("EOS", self.tokenizer.eos_id)):
            if any(a == b == token_id for a, b in pairwise(ids)):
                raise ChatError(f"chat template: writes {name} twice in a row; remove one")


def read_template(folder: Path) -> str | None:
    """The text of `chat_template.jinja`, else of the `chat_template` in `tokenizer_config.json`."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = read_config(folder).get("chat_template")
    return source if isinstance(source, str) else None


class _Marks:
    """Messages with marked contents, and the way back from rendered text to (text, message index) parts."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._contents = [message["content"] for message in messages]
        used = {number for content in self._contents for number in re.findall("\ufdd0([0-9]{9})", content)}
        self._mark = next(f"\ufdd0{n:09}" for n in range(len(used) + 1) if f"{n:09}" not in used)
        self._pattern = re.compile(f"{self._mark}:([0-9]+)\ufdd1(.*?){self._mark}/\ufdd1", re.DOTALL)
        end = f"{self._mark}/\ufdd1"
        contents = [_Content(text, (f"{self._mark}:{i}\ufdd1", end)) for i, text in enumerate(self._contents)]
        self.messages = [{"role": m["role"], "content": c} for m, c in zip(messages, contents, strict=True)]

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Parts in order; the index is None for the template's own text."""
        parts: list[tuple[str, int | None]] = []
        seen: set[int] = set()
        position = 0
        for match in self._pattern.finditer(text):
            index, content = int(match[1]), match[2]
            if content.strip() != self._contents[index].strip():
                _refuse_change(index)
            parts += [(text[position : match.start()], None), (content, index)]
            seen.add(index)
            position = match.end()
        parts.append((text[position:], None))
        if any(self._mark in part for part, index in parts if index is None):
            _refuse_change(None)
        if unseen := set(range(len(self._contents))) - seen:
            _refuse_change(min(unseen))
        return [part for part in parts if part[0]]


def _refuse_change(index: int | None) -> NoReturn:
    which = "a message" if index is None else f"message {index + 1}"
    raise ChatError(f"chat template: the content of {which} is missing, truncated or changed; write it unchanged")


def _raise_exception(message: str) -> NoReturn:
    raise ChatError(f"chat template: {message}")


def check_messages(messages: Any) -> None:
    """Raises `ChatError` unless this is a non-empty list of {role, content} with known roles and text contents."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ChatError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ChatError("messages: the list is empty; a conversation needs at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ChatError(f"message {number}: expected a mapping with role and content, got {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise ChatError(f"message {number}: unknown role {message.get('role')!r}; known: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise ChatError(f"message {number} ({message['role']}): content must be text, got {kind}")
