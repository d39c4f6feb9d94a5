"""Rows as token ids, with what is learned of them.

| rows       | segments         | learned                                                | values   |
|------------|------------------|--------------------------------------------------------|----------|
| `chat`     | one              | answers and their ends; of `text` everything           | -        |
| `pairs`    | chosen, rejected | the answers and their ends                             | `margin` |
| `labelled` | one              | the completion and its end                             | `label`  |
| `steps`    | one              | the last token of each step, by the step's label       | -        |
| `prompts`  | one              | nothing: it is answered                                | -        |
| `taught`   | one              | the tokens with labels (`text/taught_rows.py`)         | -        |

Text is encoded in parts: a prompt has the ids that it has alone, as when it is answered. A string row begins with BOS
where the model's contexts do, and what is learned of it ends with EOS, each once; names of special tokens in it are
text, unless the run says that they are tokens. What must hold: each token is learned or not by the row alone, and a row
that is wrong raises `RowError`, one that is sound and teaches nothing `UnusableRow`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lifecycle.core.config import nearest
from lifecycle.text.chat import ChatTemplate, Message, Rendered
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_columns import is_messages, used_columns
from lifecycle.text.row_files import RowData, RowError
from lifecycle.text.taught_rows import Told, told_of

RESERVED = ("messages", "tools", "add_generation_prompt")  # what a template is told by its caller
SAID = ("content", "tool_calls", "reasoning_content", "thinking")  # parts of an assistant's message
LARGEST_MARGIN = 3.4e38  # float32
STEP_SEPARATOR = "\n"


class UnusableRow(RowError):
    """A sound row that cannot be learned from as it is; it is dropped and counted."""


@dataclass(frozen=True)
class EncodedRow:
    """Token ids, for each whether it is a target and, of steps, its label (0 where it is no target)."""

    ids: list[int]
    loss_mask: list[bool]
    labels: list[float] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """What comes before the last run of targets; all, if there are none."""
        last = next((at for at in reversed(range(len(self.ids))) if self.loss_mask[at]), None)
        if last is None:
            return self.ids
        before = next((at for at in reversed(range(last)) if not self.loss_mask[at]), -1)
        return self.ids[: before + 1]


@dataclass(frozen=True)
class EncodedTaught(EncodedRow):
    """Ids, and what a teacher says of those that are learned, in order."""

    told: Told = field(kw_only=True)


@dataclass(frozen=True)
class EncodedGroup:
    """Segments that are learned from together, and numbers of the group by name, one or one for each segment."""

    segments: tuple[EncodedRow, ...]
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, what the row has for it, and the row's other columns, for reward functions."""

    ids: list[int]
    prompt: Any
    columns: Mapping[str, Any]


type Encoded = EncodedRow | EncodedGroup | EncodedPrompt


def segments_of(encoded: Encoded) -> tuple[EncodedRow, ...]:
    """The segments of an encoded row; nothing of a prompt is learned."""
    if isinstance(encoded, EncodedGroup):
        return encoded.segments
    if isinstance(encoded, EncodedPrompt):
        return (EncodedRow(encoded.ids, [False] * len(encoded.ids)),)
    return (encoded,)


@dataclass(frozen=True)
class TemplateOnUse:
    """A folder's chat template. Rows of text need none, and a tokenizer without chats' special tokens has none."""

    folder: Path
    tokenizer: Tokenizer

    @cached_property
    def _loaded(self) -> ChatTemplate:
        return ChatTemplate.load(self.folder, self.tokenizer)

    @property
    def variables(self) -> frozenset[str]:
        """As the template's."""
        return self._loaded.variables

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        closes: bool = False,
    ) -> Rendered:
        """As the template does; raises `ChatError` for one that cannot be used."""
        return self._loaded.render(messages, add_generation_prompt, tools, variables, closes)


class RowEncoder:
    """Encodes rows with one chat template and its tokenizer. `special_tokens`: the names of special tokens in string
    rows are these tokens."""

    def __init__(
        self,
        template: ChatTemplate | TemplateOnUse,
        special_tokens: bool = False,
        step_separator: str = STEP_SEPARATOR,
    ) -> None:
        self._template = template
        self._tokenizer = template.tokenizer
        self._special_tokens, self._separator = special_tokens, step_separator

    def encoding(self, kind: str) -> Callable[[RowData], Encoded]:
        """The function that encodes rows of a kind."""
        return {
            "chat": self.encode_chat, "pairs": self.encode_pair, "labelled": self.encode_labelled,
            "steps": self.encode_steps, "prompts": self.encode_prompt, "taught": self.encode_taught,
        }[kind]  # fmt: skip

    def encode_chat(self, row: RowData) -> EncodedRow:
        """A fine-tuning row: `messages`, `prompt` and `completion`, or `text`."""
        form = used_columns("chat", row)
        if "messages" in form:
            return self._conversation(row, row["messages"], learn_from=0)
        if "text" in form:
            return self._answer(row, "", row["text"], "text")
        return self._answer(row, row["prompt"], row["completion"], "completion")

    def encode_pair(self, row: RowData) -> EncodedGroup:
        """A preference row: the chosen and the rejected answer, each behind the prompt."""
        used_columns("pairs", row)
        prompt, chosen, rejected = apart(row)
        margin = {"margin": (_margin(row["margin"]),)} if "margin" in row else {}
        halves = self._answer(row, prompt, chosen, "chosen"), self._answer(row, prompt, rejected, "rejected")
        if halves[0].ids == halves[1].ids:
            raise UnusableRow("chosen and rejected are equal")
        return EncodedGroup(halves, margin)

    def encode_labelled(self, row: RowData) -> EncodedGroup:
        """A completion with whether it is good."""
        used_columns("labelled", row)
        label = (_label(row["label"], "label"),)
        return EncodedGroup((self._answer(row, row["prompt"], row["completion"], "completion"),), {"label": label})

    def encode_steps(self, row: RowData) -> EncodedGroup:
        """An answer in steps, each followed by the separator, with whether it is right."""
        used_columns("steps", row)
        prompt, steps, labels = row["prompt"], row["completions"], row["labels"]
        if not isinstance(prompt, str) or not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
            raise RowError("prompt must be text, and completions a list of texts")
        if not isinstance(labels, list) or len(labels) != len(steps):
            raise RowError("labels must be a list with one for each of completions")
        if not steps:
            raise UnusableRow("no steps")
        ids = self._context(prompt)
        row_labels, ends = [0.0] * len(ids), [False] * len(ids)
        for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
            said = self._ids(step) + self._ids(self._separator)
            if not said:
                raise UnusableRow("a step without text")
            ids = ids + said
            ends += [False] * (len(said) - 1) + [True]
            row_labels += [0.0] * (len(said) - 1) + [_label(label, f"labels: label {number}")]
        return EncodedGroup((EncodedRow(ids, ends, row_labels),))

    def encode_prompt(self, row: RowData) -> EncodedPrompt:
        """A prompt up to where the answer begins; the row's other columns stay as they are."""
        used_columns("prompts", row)
        prompt = row["prompt"]
        if not prompt:
            raise UnusableRow("empty prompt")
        others = {name: value for name, value in row.items() if name != "prompt"}
        if isinstance(prompt, str):
            return EncodedPrompt(self._context(prompt), prompt, others)
        if not is_messages(prompt):
            raise RowError(f"prompt must be text or a list of messages, got {type(prompt).__name__}")
        if prompt[-1].get("role") == "assistant":
            raise RowError("prompt ends with the assistant's message, and it is to be answered; end it with the user's")
        return EncodedPrompt(self.open_conversation(row, prompt).ids, prompt, others)

    def encode_taught(self, row: RowData) -> EncodedTaught:
        """A row of tokens, with what a teacher says of those that are learned."""
        used_columns("taught", row)
        mask, told = told_of(row, self._tokenizer.vocab_size)
        if not any(mask):
            raise UnusableRow("no token has a label")
        return EncodedTaught(row["input_ids"], mask, told=told)

    def decoded(self, row: RowData) -> str | None:
        """The text of a row of tokens; None of one that has its text itself."""
        return self._tokenizer.decode(row["input_ids"]) if "input_ids" in row else None

    def open_conversation(self, row: RowData, messages: Any) -> Rendered:
        """Messages up to where the assistant's next one begins, with the tools and the template's variables of a row.

        Raises `RowError` and `ChatError`.
        """
        return self._render(row, messages, add_generation_prompt=True)

    def _answer(self, row: RowData, prompt: Any, answer: Any, column: str) -> EncodedRow:
        if isinstance(prompt, list) or isinstance(answer, list):
            asked = _messages(prompt, "user")
            return self._conversation(row, asked + _messages(answer, "assistant"), len(asked))
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise RowError(f"prompt and {column} must be text or lists of messages")
        if not answer:
            raise UnusableRow(f"empty {column}")
        before, after = self._context(prompt), self._ids(answer)
        if column == "text":  # its own names of special tokens may have begun it
            before = [] if after[:1] == before else before
        if after[-1:] != [self._tokenizer.eos_id]:
            after.append(self._tokenizer.eos_id)
        return EncodedRow(before + after, [False] * len(before) + [True] * len(after))

    def _context(self, prompt: str) -> list[int]:
        """A string's ids as a model's context begins with them: with BOS if contexts have it, once."""
        ids = self._ids(prompt)
        begins = [self._tokenizer.bos_id] if self._tokenizer.adds_bos else []
        return ids if ids[:1] == begins else begins + ids

    def _ids(self, text: str) -> list[int]:
        """Ids of a string; names of special tokens in it are text, or these tokens."""
        if not text:
            return []
        return self._tokenizer.encode_marked(text) if self._special_tokens else self._tokenizer.encode(text)

    def _conversation(self, row: RowData, messages: Any, learn_from: int) -> EncodedRow:
        """A conversation whose targets are the assistant's messages from index `learn_from` on."""
        rendered = self._render(row, messages, closes=True)
        mask = [index >= learn_from for index in rendered.said_in]
        if not any(mask) or not any(map(_says_something, messages[learn_from:])):
            raise UnusableRow("empty assistant mask: no assistant message with a content")
        if any(index >= learn_from for index in rendered.cut):
            raise UnusableRow(
                "the chat template leaves out a part of an earlier answer; make a row of each answer: the messages "
                "before it as prompt, and the answer as completion"
            )
        return EncodedRow(rendered.ids, mask)

    def _render(self, row: RowData, messages: Any, **how: bool) -> Rendered:
        return self._template.render(messages, tools=tools_of(row), variables=self._variables(row), **how)

    def _variables(self, row: RowData) -> Mapping[str, Any]:
        """A row's own variables for the template, all of which it must read."""
        variables = row.get("chat_template_kwargs", {})
        if not isinstance(variables, Mapping):
            raise RowError(f"chat_template_kwargs must be a mapping, got {type(variables).__name__}")
        for name in variables:
            if name in RESERVED:
                raise RowError(f"chat_template_kwargs: {name} is not a template's own variable; leave it out")
            if name not in self._template.variables:
                known = sorted(self._template.variables)
                raise RowError(f"chat_template_kwargs: the chat template reads no {name!r}{nearest(name, known)}")
        return variables


def apart(row: RowData) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) of a preference row; an implicit prompt is the answers' longest common beginning."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen == rejected:
        raise UnusableRow("chosen and rejected are equal")
    if type(chosen) is not type(rejected):
        raise RowError("chosen and rejected must both be text or both be messages")
    return (row["prompt"], chosen, rejected) if "prompt" in row else _shared(chosen, rejected)


def _shared(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if not isinstance(chosen, str | list):
        raise RowError(f"chosen and rejected must be text or lists of messages, got {type(chosen).__name__}")
    pairs = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and shared and chosen[shared - 1] == " ":
        shared -= 1  # the space belongs to the answer's first word, as the tokenizer sees it
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _says_something(message: Message) -> bool:
    """Whether it is an assistant's message with a content, calls or thoughts."""
    said = (message.get(part) for part in SAID)
    is_said = any(part.strip() if isinstance(part, str) else part for part in said)
    return message["role"] == "assistant" and is_said


def _messages(value: Any, role: str) -> list[Message]:
    """Text in a conversational row becomes one message of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value else []
    if not isinstance(value, list):
        raise RowError(f"expected text or a list of messages, got {type(value).__name__}")
    return value


def tools_of(row: RowData) -> Sequence[Mapping[str, Any]] | None:
    """A row's tools: a list of JSON schemas, or that in JSON; None without any."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise RowError(f"tools: not valid JSON ({error.msg} at column {error.colno})") from None
    if tools is not None and not is_messages(tools):
        raise RowError("tools must be a list of JSON schemas, or one in JSON")
    return tools or None


def _label(value: Any, name: str) -> float:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return float(value)
    raise RowError(f"{name} must be true or false, or 1 or 0, got {json.dumps(value)[:60]}")


def _margin(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and abs(value) <= LARGEST_MARGIN:
        return float(value)
    raise RowError(f"margin must be a number, got {json.dumps(value)[:60]}")
