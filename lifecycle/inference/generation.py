"""One request's output: from tokens to events on the engine's side, and the caller's handle.

What must hold: the concatenated texts of the events are the decoded tokens up to the stop, and no event ends inside a
character or shows a part of a stop string.
"""

import asyncio
import itertools
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lifecycle.inference.adapters import Lease
from lifecycle.inference.bad_words import forbidden
from lifecycle.inference.forbidden import Guard
from lifecycle.inference.grammar import Constraint
from lifecycle.inference.pages import chunk_names
from lifecycle.inference.predicted import PredictedTokens
from lifecycle.inference.sampling import NOT_FINITE, Sampled, SamplingParams
from lifecycle.inference.stopping import StopBuffer
from lifecycle.text.tokenizer import StreamDecoder, Tokenizer

type FinishReason = Literal["stop", "length", "cancelled"]

_numbers = itertools.count(1)


class EngineError(RuntimeError):
    """A request failed, or the engine's thread and every request with it; the traceback is in the log."""


class NotFiniteError(ArithmeticError):
    """What the model computed for a request is NaN or infinite."""

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens`: of the prompt and the output, that it was computed from."""
        super().__init__(
            f"after {num_tokens} tokens of prompt and output the model's numbers are not finite: its weights or the "
            "request's adapter are damaged, or too large for the compute dtype; other requests are not affected"
        )


class Draw(NamedTuple):
    """What a token was drawn from (`sampling.Drawn`): its log-probability there, and the ids that it could have been,
    if these are recorded."""

    logprob: float
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Token:
    """A generated token; `top` has the likeliest (id, log-probability) pairs at its position, if requested; `draw` is
    there if an engine records it."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    draw: Draw | None = None


def is_finite(sampled: Sampled, row: int) -> bool:
    """Whether all logits were finite behind which a row's tokens were sampled."""
    return not (np.asarray(sampled.token[row]) == NOT_FINITE).any()


def tokens_of(sampled: Sampled, row: int, num_top: int) -> Iterator[Token]:
    """The tokens that were sampled for a row, in order, each with `num_top` of the likeliest."""
    ids, logprobs = np.asarray(sampled.token[row]).tolist(), np.asarray(sampled.logprob[row]).tolist()
    for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        if token >= 0:
            top = _top(sampled, row, place, num_top) if num_top else ()
            yield Token(token, logprob, top, _draw(sampled, row, place))


def _draw(sampled: Sampled, row: int, place: int) -> Draw | None:
    if sampled.drawn is None:
        return None
    ids = np.asarray(sampled.drawn.ids[row, place])
    return Draw(float(sampled.drawn.logprob[row, place]), tuple(ids[ids >= 0].tolist()))


def _top(sampled: Sampled, row: int, place: int, num: int) -> tuple[tuple[int, float], ...]:
    ids, logprobs = sampled.top_ids[row, place, :num], sampled.top_logprobs[row, place, :num]
    return tuple((i, p) for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True) if p > -np.inf)


@dataclass(frozen=True)
class Event:
    """Text that can no longer change, and its tokens. The last event has a finish reason.

    The tokens of the last event include the stop id, or those of the stop string; its text does not.
    """

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """The complete output of a request."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason

    @property
    def token_ids(self) -> list[int]:
        """The ids of all tokens, a stop id included."""
        return [token.id for token in self.tokens]


class Assembler:
    """Collects a request's tokens into events: `push` each token, then `take` an event if there is one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stop_ids: Sequence[int],
        max_tokens: int,
        prompt: Sequence[int] = (),
        prediction: Sequence[int] = (),
    ) -> None:
        held = forbidden(params, stop_ids, len(prompt))
        self._guard = Guard(held, prompt) if held else None
        self.predicted = PredictedTokens(prediction)
        # a grammar counts every byte of the tokens, also the space that begins a text
        self._decoder = StreamDecoder(tokenizer, params.shown_ids, strips=params.grammar is None)
        self._stop = StopBuffer(params.stop)
        self._stop_ids = frozenset(stop_ids)
        self._min_tokens, self._max_tokens = params.min_tokens, max_tokens
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._text = ""
        self._tokens: list[Token] = []

    def push(self, token: Token, is_last: bool = False) -> None:
        """Adds the next token; sets `finish_reason` if it is the last. Do not push later tokens.

        `is_last`: the request's grammar lets nothing follow. Raises `ForbiddenError` for a token that must not come.
        """
        if self._guard is not None:
            self._guard.push(token.id)
        self._tokens.append(token)
        self.predicted.push(token.id)
        self.num_tokens += 1
        if token.id in self._stop_ids:
            self._end("stop")
            return
        text = self._decoder.feed(token.id)
        self._text += text if self.num_tokens <= self._min_tokens else self._stop.push(text)
        if self._stop.is_stopped:
            self.finish_reason = "stop"
        elif is_last:
            self._end("stop")
        elif self.num_tokens == self._max_tokens:
            self._end("length")

    def _end(self, reason: FinishReason) -> None:
        self._text += self._stop.push(self._decoder.finish()) + self._stop.finish()
        self.finish_reason = "stop" if self._stop.is_stopped else reason

    def take(self) -> Event | None:
        """The event since the last one; None if there is neither new text nor an end."""
        if not self._text and self.finish_reason is None:
            return None
        event = Event(self._text, tuple(self._tokens), self.finish_reason)
        self._text, self._tokens = "", []
        return event


class Generation:
    """A request in the engine. Iterate over it, or `async for`, once: events arrive as they are made.

    Iterating raises `EngineError` if the engine fails. Leaving an asynchronous iteration early cancels the request.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        constraint: Constraint | None = None,
        prediction: Sequence[int] = (),
    ) -> None:
        """`constraint`: the beginning of an output in `params.grammar`. `prediction`: what the output may be."""
        self.constraint, self.prediction = constraint, prediction
        self.id = f"g{next(_numbers)}"
        self.prompt = list(prompt)
        self.params = params
        self.max_tokens = max_tokens
        self.seed = params.seed if params.seed is not None else secrets.randbits(64)
        self.is_cancelled = False
        self.cached_tokens = 0  # of the prompt: those that it found in the cache
        self.output: Assembler | None = None  # the engine's, from the time when the request gets a slot
        self.adapter: Lease | None = None  # the engine's, until the last event
        self.prompt_tokens: list[Token] = []  # from the second one on, if asked for; whole before the first event
        self._changed = threading.Condition()
        self._events: deque[Event | EngineError] = deque()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def priority(self) -> int:
        """Lower ones go first."""
        return self.params.priority

    @property
    def cache_key(self) -> bytes:
        """Cached tokens are those of the same adapter."""
        return b"" if self.adapter is None else self.adapter.key

    @property
    def may_share(self) -> bool:
        """Whether cached tokens of its prompt need not be computed: not if it asks for their log-probabilities."""
        return self.params.prompt_logprobs is None

    @property
    def twin_key(self) -> bytes | None:
        """The prompt and what its computation depends on: the adapter, and whether its tokens are penalised."""
        if not self.may_share:
            return None
        is_penalised = bytes([self.params.repetition_penalty != 1])
        return chunk_names(self.prompt, len(self.prompt), is_penalised + self.cache_key)[0]

    @property
    def num_predicted(self) -> int:
        """How many tokens of the prediction the output has so far."""
        return 0 if self.output is None else self.output.predicted.num_accepted

    def cancel(self) -> None:
        """Tells the engine to end the request at its next turn; its slot is free then."""
        self.is_cancelled = True

    def put(self, event: Event | EngineError) -> None:
        """Called by the engine: delivers an event and wakes the waiting caller. The last one ends its adapter's use."""
        if self.adapter is not None and (isinstance(event, EngineError) or event.finish_reason is not None):
            self.adapter.end()
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()
            if self._waiter is not None:
                loop, ready = self._waiter
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(ready.set)

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._events))
                event = self._events.popleft()
            yield _checked(event)
            if isinstance(event, Event) and event.finish_reason:
                return

    async def __aiter__(self) -> AsyncGenerator[Event]:
        ready = asyncio.Event()
        with self._changed:
            self._waiter = (asyncio.get_running_loop(), ready)
        try:
            while True:
                while not self._events:
                    ready.clear()
                    if not self._events:  # one may have come between the two lines above
                        await ready.wait()
                event = _checked(self._events.popleft())
                yield event
                if event.finish_reason:
                    return
        finally:
            with self._changed:
                self._waiter = None
            self.cancel()

    def wait(self) -> Completion:
        """Waits for the end and returns the complete output."""
        return collect(list(self))


def _checked(event: Event | EngineError) -> Event:
    if isinstance(event, EngineError):
        raise event
    return event


def collect(events: Sequence[Event]) -> Completion:
    """Joins a request's events."""
    reason = events[-1].finish_reason
    assert reason is not None, "the last event has a finish reason"
    tokens = tuple(token for event in events for token in event.tokens)
    return Completion("".join(event.text for event in events), tokens, reason)
