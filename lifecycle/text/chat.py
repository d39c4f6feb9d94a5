"""Chat templates: messages to token ids, with a mask of the assistant's tokens.

A template is jinja2 in the dialect of transformers, run in an immutable sandbox. What must hold: nobody can inject a
turn. The template's own text may name special tokens; a message's content is always encoded as plain text. The rendered
text is known character by character: which message it is from, or the template (`text/traced.py`).

Models trained here learned each content encoded by itself (`DEFAULT_TEMPLATE`): a prompt is then the beginning of the
answered conversation, token by token. Published models learned what transformers gives: all text between two special
tokens encoded together, the template's and the contents'.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta

from lifecycle.core.files import write_text
from lifecycle.text.interface import IM_END, IM_START, Span, Tokenizer, read_config
from lifecycle.text.template_environment import TemplateEnvironment, compile_error
from lifecycle.text.traced import runs_of, traced

TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant")
TOOL = "tool"  # the role of a tool's result
# What a template is told of a message beside role and content: transformers' names.
PARTS = {"assistant": ("tool_calls", "reasoning_content"), TOOL: ("tool_call_id", "name")}
GIVEN = -1  # in the place of a message's index: what the request gives beside its messages
FIXED_DATE = datetime(2024, 7, 26)  # what Llama 3.2's template falls back to itself
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

type Message = Mapping[str, Any]


class ChatError(ValueError):
    """Messages that cannot be rendered, or a template that is unsafe to use."""


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and, for each, the index of the assistant's message that it is of, or -1.

    `cut` has the assistant's messages of which the template leaves out a part, as some do with earlier thoughts.
    """

    ids: list[int]
    said_in: list[int]
    cut: frozenset[int] = frozenset()

    @property
    def assistant_mask(self) -> list[bool]:
        """For each token, whether it is the assistant's."""
        return [index >= 0 for index in self.said_in]


@dataclass(frozen=True)
class Piece:
    """A part of rendered text: a special token, a content (`message`), or the template's other text."""

    text: str
    start: int
    message: int | None = None
    special: int | None = None

    @property
    def stop(self) -> int:
        """The position of the character after it."""
        return self.start + len(self.text)


class ChatTemplate:
    """A template bound to a tokenizer.

    A template that asks for the date is told `FIXED_DATE`, so that a row has the same tokens on any day, or by `live`
    the time of the request. Raises `ChatError` for a template that is not valid jinja2, and for the default template
    with a tokenizer that lacks its special tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: str = DEFAULT_TEMPLATE, now: Callable[[], datetime] = lambda: FIXED_DATE
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self._is_own = source == DEFAULT_TEMPLATE
        try:
            self._template = TemplateEnvironment(now).from_string(source)
        except TemplateError as error:
            raise ChatError(f"chat template: {compile_error(error)}") from None
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

    @cached_property
    def live(self) -> "ChatTemplate":
        """The same for conversations that take place now."""
        return ChatTemplate(self.tokenizer, self.source, datetime.now)

    @cached_property
    def dated(self) -> "ChatTemplate":
        """The same for rows and evaluations, which must not depend on the day."""
        return ChatTemplate(self.tokenizer, self.source)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set itself."""
        environment = self._template.environment
        return frozenset(meta.find_undeclared_variables(environment.parse(self.source)))

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

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Ids of the conversation; each assistant's content is said, and the token that ends its turn.

        `tools` in OpenAI's form; `variables` are the template's own (`enable_thinking`). A message of an assistant may
        have `tool_calls`, whose arguments are a mapping, and `reasoning_content`; one of a tool `tool_call_id` and
        `name`. All their texts count as contents: none of them names a special token.

        Raises `ChatError` for no messages, an unknown role, a content that is not text, tools that the template does
        not know, and a template that fails or leaves out what the user, the system or a tool says.
        """
        check_messages(messages, (*ROLES, TOOL))
        self._check_abilities(messages, tools)
        pieces = self._pieces(messages, add_generation_prompt, tools, variables or {})
        _require_all(messages, pieces)
        owners, cut = _owners(messages, pieces)
        ids: list[int] = []
        said_in: list[int] = []
        for token_id, start, stop in self._encode(pieces):
            ids.append(token_id)
            said_in.append(max(owners[start : max(stop, start + 1)], default=-1))
        self._refuse_doubled(ids)
        return Rendered(ids, said_in, cut)

    def _check_abilities(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
        if tools and "tools" not in self.variables:
            raise ChatError("chat template: it has no place for tools")
        is_about_calls = any(message["role"] == TOOL or message.get("tool_calls") for message in messages)
        if is_about_calls and "tool_calls" not in self.source:
            raise ChatError("chat template: it has no place for calls of tools and their results")

    def _pieces(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> list[Piece]:
        own = {name: traced(value, GIVEN) for name, value in variables.items()}
        try:
            text = self._template.render(
                **own | self._token_names(), messages=[_traced(m, i) for i, m in enumerate(messages)],
                add_generation_prompt=add_generation_prompt, tools=tools and traced(list(tools), GIVEN), documents=None,
            )  # fmt: skip
        except TEMPLATE_ERRORS as error:
            raise ChatError(f"chat template: {error}") from None
        pieces: list[Piece] = []
        for run, message in runs_of(text):
            parts = self.tokenizer.split_specials(run) if message is None else [(run, None)]
            for part, special in parts:
                pieces.append(Piece(part, pieces[-1].stop if pieces else 0, message, special))
        return pieces

    def _token_names(self) -> dict[str, str]:
        names = {token_id: name for name, token_id in self.tokenizer.special_ids.items()}
        framing = {"eos_token": names[self.tokenizer.eos_id], "pad_token": names[self.tokenizer.pad_id]}
        return framing | ({"bos_token": names[self.tokenizer.bos_id]} if self.tokenizer.has_bos else {})

    def _encode(self, pieces: Sequence[Piece]) -> Iterator[Span]:
        """The tokens with their characters in the rendered text."""
        parts = groupby(pieces, key=lambda piece: piece.start if self._is_apart(piece) else -1)
        runs = [list(run) for _, run in parts]
        for number, run in enumerate(runs):
            first, special = run[0].start, run[0].special
            if special is not None:
                self.tokenizer.require_rows([special])
                yield special, first, run[0].stop
                continue
            text = "".join(piece.text for piece in run)
            if number and self._strips(runs[number - 1])[1]:
                first, text = first + len(text) - len(text.lstrip()), text.lstrip()
            if number + 1 < len(runs) and self._strips(runs[number + 1])[0]:
                text = text.rstrip()
            spans = self.tokenizer.encode_spans(text, is_first=self._is_own or first == 0)
            yield from ((token_id, first + start, first + stop) for token_id, start, stop in spans)

    def _strips(self, run: Sequence[Piece]) -> tuple[bool, bool]:
        """Whether what stands here takes the spaces before it, and those after it: some special tokens do."""
        special = run[0].special
        return (False, False) if special is None else self.tokenizer.strips(special)

    def _is_apart(self, piece: Piece) -> bool:
        """Whether it is encoded by itself, not with its neighbours."""
        return self._is_own or piece.special is not None

    def _refuse_doubled(self, ids: list[int]) -> None:
        for name, token_id in (("BOS", self.tokenizer.bos_id), ("EOS", self.tokenizer.eos_id)):
            if any(a == b == token_id for a, b in pairwise(ids)):
                raise ChatError(f"chat template: writes {name} twice in a row; remove one")


def _traced(message: Message, index: int) -> dict[str, Any]:
    parts = {key: message[key] for key in PARTS.get(message["role"], ()) if key in message}
    told = {key: traced(value, index) for key, value in parts.items()}
    return {"role": message["role"], "content": traced(message["content"], index), **told}


def read_template(folder: Path) -> str | None:
    """The text of `chat_template.jinja`, else of the `chat_template` in `tokenizer_config.json`."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = read_config(folder).get("chat_template")
    return source if isinstance(source, str) else None


def _require_all(messages: Sequence[Message], pieces: Sequence[Piece]) -> None:
    """An earlier answer may be left out (it was nothing but thoughts); of what the model is told no letter may."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        rendered = "".join("".join(piece.text for piece in pieces if piece.message == index).split())
        content = message["content"]
        forms = (content, *(json.dumps(content, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)))
        if not any("".join(form.split()) in rendered for form in forms):
            raise ChatError(f"chat template: leaves out message {index + 1} ({message['role']}), or a part of it")


def _owners(messages: Sequence[Message], pieces: Sequence[Piece]) -> tuple[list[int], frozenset[int]]:
    """For each character the assistant's message that it is of, or -1; and the messages that are cut."""
    text = "".join(piece.text for piece in pieces)
    owners = [-1] * len(text)
    cut = {i for i, message in enumerate(messages) if message["role"] == "assistant" and message["content"].strip()}
    for number, piece in enumerate(pieces):
        if piece.message in (None, GIVEN) or messages[piece.message]["role"] != "assistant":
            continue
        start = _beginning(text, piece, messages[piece.message]["content"])
        cut -= {piece.message} if start is not None else set()
        first, stop = piece.start if start is None else start, _turn_end(pieces, number)
        owners[first:stop] = [piece.message] * (stop - first)
    return owners, frozenset(cut)


def _beginning(text: str, piece: Piece, content: str) -> int | None:
    """Where the content that ends with `piece` begins in the text; None if a part of it is not there.

    A template may take a content apart and write parts of it itself, with other spaces (`<think>`, the thoughts,
    `</think>`, the answer): spaces do not count.
    """
    wanted, found = "".join(content.split()), "".join(piece.text.split())
    if not wanted.endswith(found):
        return None
    start = piece.start
    for character in reversed(wanted.removesuffix(found)):
        while start and text[start - 1].isspace():
            start -= 1
        if not start or text[start - 1] != character:
            return None
        start -= 1
    return start


def _turn_end(pieces: Sequence[Piece], number: int) -> int:
    """The end of a content, with the template's text that ends the turn: up to a special token, if there is one."""
    for piece in pieces[number + 1 :]:
        if piece.special is not None:
            return piece.stop
        if piece.message is not None:
            break
    return pieces[number].stop


def check_messages(messages: Any, roles: Sequence[str] = ROLES) -> None:
    """Raises `ChatError` unless this is a non-empty list of {role, content} with these roles and text contents."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ChatError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ChatError("messages: the list is empty; a conversation needs at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ChatError(f"message {number}: expected a mapping with role and content, got {type(message).__name__}")
        if message.get("role") not in roles:
            raise ChatError(f"message {number}: unknown role {message.get('role')!r}; known: {', '.join(roles)}")
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise ChatError(f"message {number} ({message['role']}): content must be text, got {kind}")
