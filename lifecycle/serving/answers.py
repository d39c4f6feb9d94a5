"""Answers in OpenAI's shapes: complete ones and chunks of a stream. Those of chats are in `chat_answers.py`."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lifecycle.inference.generation import Completion, Event, Generation, Token
from lifecycle.text.tokenizer import Tokenizer


@dataclass
class Usage:
    """Tokens of one HTTP request; a generated stop token is counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_choices: Sequence[Generation] = ()  # of each prompt; they know how much of it was cached
    predicted_choices: Sequence[Generation] = ()  # those with a prediction; they know how much of it was right

    def plain(self) -> dict[str, Any]:
        """The `usage` object of an answer."""
        total = self.prompt_tokens + self.completion_tokens
        plain: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in self.first_choices)},
        }
        if predicted := self.predicted_choices:
            accepted = sum(choice.num_predicted for choice in predicted)
            rejected = sum(len(choice.prediction) for choice in predicted) - accepted
            details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
            plain["completion_tokens_details"] = details
        return plain


@dataclass(frozen=True)
class Echo:
    """What a choice's text begins with if the request asks for its prompt: of ids that the tokenizer adds nothing."""

    text: str
    ids: Sequence[int]
    generation: Generation  # has the log-probabilities of the prompt's tokens, from the second one on

    def tokens(self) -> list[tuple[int, Token | None]]:
        """The shown ids, each with its log-probabilities; the first of a context has none."""
        scored = dict(enumerate(self.generation.prompt_tokens, 1))  # by position
        hidden = len(self.generation.prompt) - len(self.ids)
        return [(token_id, scored.get(position)) for position, token_id in enumerate(self.ids, hidden)]


@dataclass
class AnswerForm(ABC):
    """Shapes one request's answer. `version` is the model's, shown as `system_fingerprint`."""

    prefix: ClassVar[str]  # of the answer's id
    kind: ClassVar[str]  # of object
    chunk_kind: ClassVar[str]
    model: str
    version: str
    tokenizer: Tokenizer
    stop_ids: Sequence[int]
    has_logprobs: bool
    usage: Usage = field(default_factory=Usage)
    wants_usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.prefix + secrets.token_hex(12)

    def complete(self, completions: Sequence[Completion], kept: Sequence[int]) -> dict[str, Any]:
        """The answer in one piece, with those of these numbers."""
        events = [(i, Event(c.text, c.tokens, c.finish_reason)) for i in kept for c in [completions[i]]]
        choices = [{**self.choice(i, event), "index": place} for place, (i, event) in enumerate(events)]
        return {**self._head(self.kind), "choices": choices, "usage": self.usage.plain()}

    @abstractmethod
    def choice(self, index: int, event: Event) -> dict[str, Any]:
        """A complete choice."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before any event; None: there is none."""
        return None

    @abstractmethod
    def chunk(self, index: int, event: Event) -> dict[str, Any] | None:
        """The chunk for an event of a choice; None: nothing is to be sent yet."""

    def closing(self) -> dict[str, Any]:
        """The last chunk of a stream whose client asked for the usage."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": self.usage.plain()}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.wants_usage else {}
        return {**self._head(self.chunk_kind), "choices": [choice], **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.version}

    def _said(self, event: Event) -> list[Token]:
        """The event's tokens, without the stop id."""
        tokens = list(event.tokens)
        if event.finish_reason == "stop" and tokens and tokens[-1].id in self.stop_ids:
            tokens.pop()
        return tokens


@dataclass
class TextForm(AnswerForm):
    """Shapes the answer of a text completion."""

    prefix: ClassVar[str] = "cmpl-"
    kind: ClassVar[str] = "text_completion"
    chunk_kind: ClassVar[str] = "text_completion"
    echoes: dict[int, Echo] = field(default_factory=dict[int, Echo])  # by choice; each is shown once
    _offsets: dict[int, int] = field(default_factory=dict)  # characters of the tokens sent so far, by choice

    def choice(self, index: int, event: Event) -> dict[str, Any]:
        """The text of a choice, or what an event adds to it."""
        echo = self.echoes.pop(index, None)
        text = event.text if echo is None else echo.text + event.text
        logprobs = self._logprobs(index, event, echo) if self.has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": event.finish_reason}

    def chunk(self, index: int, event: Event) -> dict[str, Any]:
        """The chunk for an event of a choice."""
        return self._chunk(self.choice(index, event))

    def _logprobs(self, index: int, event: Event, echo: Echo | None) -> dict[str, Any]:
        """Log-probabilities of the event's tokens, after those of the prompt."""
        before = [] if echo is None else echo.tokens()
        return self._text_logprobs(index, [*before, *((token.id, token) for token in self._said(event))])

    def _text_logprobs(self, index: int, tokens: Sequence[tuple[int, Token | None]]) -> dict[str, Any]:
        names = [self._text(token_id) for token_id, _ in tokens]
        offsets: list[int] = []
        for name in names:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(name)
        scored = [token for _, token in tokens]
        top = [None if t is None else {self._text(i): finite(logprob) for i, logprob in t.top} for t in scored]
        logprobs = [None if token is None else finite(token.logprob) for token in scored]
        return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def _text(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id).decode(errors="replace")


def finite(logprob: float) -> float:
    """JSON has no infinities: OpenAI writes -9999 for an impossible token."""
    return max(logprob, -9999.0)
