"""Chat templates: messages to token ids, with a mask of the assistant's tokens.

A template is jinja2 in the dialect of transformers, run in an immutable sandbox. What must hold: nobody can inject a
turn. The template's own text may name special tokens; a message's content is always encoded as plain text. The rendered
text is known character by character: which message it is from, or the template (`text/traced.py`).

Models trained here learned each content encoded by itself (`DEFAULT_TEMPLATE`): a prompt is then the beginning of the
answered conversation, token by token. Published models learned what transformers gives: all text between two special
tokens encoded together, the template's and the contents'.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta

from lifecycle.core.files import write_text
from lifecycle.text.dialect import Dialect
from lifecycle.text.interface import CONFIG_FILE, IM_END, IM_START, MarkedText, Span, Tokenizer, read_config
from lifecycle.text.messages import ROLES, ChatError, Message, check_messages, told
from lifecycle.text.template_environment import TemplateEnvironment, compile_error, has_marks
from lifecycle.text.traced import runs_of, traced
from lifecycle.text.turns import GIVEN, Piece, Turn, TurnFinder, marked_turns

__all__ = ["DEFAULT_TEMPLATE", "ROLES", "ChatError", "ChatTemplate", "Message", "Rendered", "check_messages"]

TEMPLATE_FILE = "chat_template.jinja"
QUESTION, ANSWER = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
)  # for questions to a template
OWN_NAMES = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"}
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


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation and, for each, the index of the assistant's message that it is of, or -1.

    `cut` has the assistant's messages that are not said as a whole: the template leaves out thoughts, calls, or all.
    """

    ids: list[int]
    said_in: list[int]
    cut: frozenset[int] = frozenset()

    @property
    def assistant_mask(self) -> list[bool]:
        """For each token, whether it is the assistant's."""
        return [index >= 0 for index in self.said_in]


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
        self._finder = TurnFinder()
        environment = TemplateEnvironment(now)
        try:
            self._tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatError(f"chat template: {compile_error(error)}") from None
        self.has_marks = has_marks(self._tree)
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
        return frozenset(meta.find_undeclared_variables(self._tree))

    def save(self, folder: Path) -> None:
        """Writes the template's source as `chat_template.jinja`."""
        write_text(folder / TEMPLATE_FILE, self.source)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids that end an assistant's turn: end of text, and the special tokens that the template puts after it."""
        return list(dict.fromkeys([self.tokenizer.eos_id, *self._ends(), *self._closing]))

    @cached_property
    def _closing(self) -> list[int]:
        """What ends a last answer after which the template writes no special token."""
        return [] if self._ends() else self._ends(QUESTION)[:1] or [self.tokenizer.eos_id]

    def _ends(self, *following: Message) -> list[int]:
        """The special tokens that end an answer; none if the template refuses the conversation."""
        messages = [self._dialect.spoken(message) for message in (QUESTION, ANSWER, *following)]
        pieces = self._prefix(messages, False, None, {})
        last = max((piece.stop for piece in pieces if piece.message == 1), default=0)
        turn = max((stop for _, stop, index in self._turns(messages, pieces, None, {}) if index == 1), default=0)
        return [piece.special for piece in pieces if piece.special is not None and last <= piece.start < turn]

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        closes: bool = False,
    ) -> Rendered:
        """Ids of the conversation, and what of it the assistant says: its contents, and what ends its turns
        (`text/turns.py`).

        `closes` is for rows that are learned: a last answer is ended by a special token, also where the template
        writes none: by the one that the next turn begins with (GLM: `<|user|>`), else by EOS.

        `messages` as `text/messages.py` has them; `tools` in OpenAI's form; `variables` are the template's own
        (`enable_thinking`). All their texts count as contents: none of them names a special token.

        Raises `ChatError` for messages that are not in order, for tools and variables that the template does not
        know, and for a template that fails or leaves out what the user, the system or a tool says.
        """
        given = {name: value for name, value in (variables or {}).items() if value is not None}
        checked = check_messages(messages)
        self._check_abilities(checked, tools, given)
        spoken = [self._dialect.spoken(message) for message in checked]
        pieces = self._pieces(spoken, add_generation_prompt, tools, given)
        turns = self._turns(spoken, pieces, tools, given)
        cut = _cut(checked, pieces, turns)
        owners = [-1] * (pieces[-1].stop if pieces else 0)
        for start, stop, index in turns:
            owners[start:stop] = [index] * (stop - start)
        ids: list[int] = []
        said_in: list[int] = []
        for token_id, start, stop in self._encode(pieces):
            ids.append(token_id)
            said_in.append(max(owners[start : max(stop, start + 1)], default=-1))
        if closes and not add_generation_prompt and checked[-1]["role"] == "assistant":
            ids += self._closing
            said_in += [len(checked) - 1] * len(self._closing)
        self._refuse_doubled(ids)
        return Rendered(ids, said_in, cut)

    @cached_property
    def _dialect(self) -> Dialect:
        def rendered(messages: Sequence[Message]) -> str | None:
            pieces = self._prefix(messages, False, None, {})
            return "".join(piece.text for piece in pieces) if pieces else None

        return Dialect(rendered, self._is_own)

    def _check_abilities(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, variables: Mapping[str, Any]
    ) -> None:
        if wrong := [name for name in variables if name in OWN_NAMES or name not in self.variables]:
            known = ", ".join(sorted(self.variables - OWN_NAMES)) or "none"
            raise ChatError(f"chat template: it reads no variable {wrong[0]!r} of yours; known: {known}")
        if not all(isinstance(tool, Mapping) for tool in tools or ()):
            raise ChatError("tools: expected a list of mappings, as OpenAI has them")
        if tools and "tools" not in self.variables:
            raise ChatError("chat template: it has no place for tools")
        is_about_calls = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        if is_about_calls and "tool_calls" not in self.source:
            raise ChatError("chat template: it has no place for calls of tools and their results")

    def _turns(
        self,
        messages: Sequence[Message],
        pieces: Sequence[Piece],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> list[Turn]:
        roles = [message["role"] for message in messages]
        if self.has_marks:
            return list(marked_turns(pieces, roles))

        def prefix(count: int, is_open: bool) -> Sequence[Piece]:
            return self._prefix(messages[:count], is_open, tools, variables)

        context = (bool(tools), json.dumps(variables, sort_keys=True, default=str))
        return list(self._finder.turns(pieces, roles, prefix, context))

    def _prefix(
        self,
        messages: Sequence[Message],
        is_open: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> Sequence[Piece]:
        """The pieces of a part of a conversation; none if the template refuses it."""
        try:
            return self._pieces(messages, is_open, tools, variables)
        except ChatError:
            return ()

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
                **own | self._token_names, messages=[_traced(m, i) for i, m in enumerate(messages)],
                add_generation_prompt=add_generation_prompt, tools=tools and traced(list(tools), GIVEN), documents=None,
            )  # fmt: skip
        except TEMPLATE_ERRORS as error:
            raise ChatError(f"chat template: {error}") from None
        pieces: list[Piece] = []
        stop = 0
        for run, (message, block) in runs_of(text):
            parts = self.tokenizer.split_specials(run) if message is None else [(run, None)]
            for part, special in parts:
                pieces.append(Piece(part, stop, message, special, block))
                stop += len(part)
        return pieces

    @cached_property
    def _token_names(self) -> dict[str, str]:
        names = {token_id: name for name, token_id in self.tokenizer.special_ids.items()}
        framing = {"eos_token": names[self.tokenizer.eos_id], "pad_token": names[self.tokenizer.pad_id]}
        return framing | ({"bos_token": names[self.tokenizer.bos_id]} if self.tokenizer.has_bos else {})

    def _encode(self, pieces: Sequence[Piece]) -> Iterator[Span]:
        """The tokens with their characters in the rendered text. Models trained here learned each content encoded by
        itself."""
        runs = groupby(pieces, key=lambda piece: piece.start if self._is_own or piece.special is not None else -1)
        parts: list[MarkedText] = []
        for _, run in runs:
            first, *more = run
            parts.append((first.text + "".join(piece.text for piece in more), first.special))
        return self.tokenizer.encode_parts(parts, each_is_first=self._is_own)

    def _refuse_doubled(self, ids: list[int]) -> None:
        for name, token_id in (("BOS", self.tokenizer.bos_id), ("EOS", self.tokenizer.eos_id)):
            if any(a == b == token_id for a, b in pairwise(ids)):
                raise ChatError(f"chat template: writes {name} twice in a row; remove one")


def _traced(message: Message, index: int) -> dict[str, Any]:
    """The role is one of `ROLES`, so it may be part of a special token's name."""
    return {key: value if key == "role" else traced(value, index) for key, value in message.items()}


def read_template(folder: Path) -> str | None:
    """The text of `chat_template.jinja`, else of the `chat_template` in `tokenizer_config.json`: of several, which are
    listed by name, the one named `default`. Raises `ChatError` if none is."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = read_config(folder).get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise ChatError(
                f"{folder / CONFIG_FILE}: its chat templates are named {', '.join(named)}, none default; "
                f"save the one to use as {TEMPLATE_FILE} in the same folder"
            )
        source = named["default"]
    return source if isinstance(source, str) else None


def _cut(messages: Sequence[Message], pieces: Sequence[Piece], turns: Sequence[Turn]) -> frozenset[int]:
    """The assistant's messages that are not said as a whole. Raises `ChatError` for any other message that is not
    there: of what the model is told no letter may be left out."""
    text = "".join(piece.text for piece in pieces)
    parts: dict[int, list[str]] = defaultdict(list)
    for piece in pieces:
        if piece.message not in (None, GIVEN) and messages[piece.message]["role"] != "assistant":
            parts[piece.message].append(piece.text)
    for start, stop, index in turns:
        parts[index].append(text[start:stop])
    cut: set[int] = set()
    for index, message in enumerate(messages):
        rendered = _squeezed("".join(parts[index]))
        wanted = [*told(message), *([message["name"]] if "name" in message and message["role"] != "tool" else [])]
        if all(any(_squeezed(form) in rendered for form in _forms(whole)) for whole in wanted):
            continue
        if message["role"] != "assistant":
            raise ChatError(f"chat template: leaves out message {index + 1} ({message['role']}), or a part of it")
        cut.add(index)
    return frozenset(cut)


def _squeezed(text: str) -> str:
    """The text without white space, which templates change."""
    return "".join(text.split())


def _forms(text: str) -> Iterator[str]:
    """The text as it is, as JSON has it, and as Python has it, in single quotation marks too."""
    yield text
    for is_ascii in (False, True):
        yield json.dumps(text, ensure_ascii=is_ascii)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    yield repr(text)[1:-1]
