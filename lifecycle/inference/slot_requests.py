"""The requests in slots: what they are given of each dispatch, and what it makes of their settings and grammars.

What must hold: an error while one request is handled fails that request only.
"""

import logging
import math
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import numpy as np

from lifecycle.inference.adapters import place_of
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.generation import (
    Assembler,
    EngineError,
    Event,
    Generation,
    NotFiniteError,
    is_finite,
    tokens_of,
)
from lifecycle.inference.grammar import Constraint, GrammarError, Grammars
from lifecycle.inference.outbox import Outbox
from lifecycle.inference.pooling import ChunkStates, Embedding
from lifecycle.inference.sampling import Sampled
from lifecycle.inference.scheduler import Scheduler
from lifecycle.inference.slots import SlotTable
from lifecycle.text.tokenizer import Tokenizer

LOG = logging.getLogger(__name__)


class SlotRequests:
    """Used by the one thread that takes the turns. `cached_tokens`: of prompts, that were found in the cache;
    `not_finite`: requests that failed by numbers that are not finite."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        grammars: Grammars,
        scheduler: Scheduler[Generation],
        table: SlotTable,
        outbox: Outbox,
        changed: threading.Condition,
    ) -> None:
        """`changed` guards the scheduler."""
        self._tokenizer, self._grammars, self._outbox = tokenizer, grammars, outbox
        self._scheduler, self._table, self._changed = scheduler, table, changed
        self._constraints: dict[int, Constraint | None] = {}  # how far the output in a slot is in its grammar
        self.cached_tokens = self.not_finite = 0

    def open(self, slot: int, generation: Generation, num_cached: int) -> None:
        """Gives a request its slot, with so many tokens of its prompt in the cache."""
        self._table.adapter[slot] = place_of(generation.adapter)
        if isinstance(generation, Embedding):
            generation.begin()  # nothing is sampled: the slot stays as an empty one is
            return
        params, prompt = generation.params, generation.prompt
        stop_ids = params.stop_ids or ()
        if generation.output is None:
            texts = prompt, generation.prediction
            generation.output = Assembler(self._tokenizer, params, stop_ids, generation.max_tokens, *texts)
            generation.cached_tokens = num_cached
            self.cached_tokens += num_cached
        if generation.output.num_tokens == 0:
            generation.prompt_tokens.clear()
        self._table.open(slot, params, generation.seed, stop_ids, len(prompt))
        self._table.foresee(slot, prompt, generation.prediction)
        self._constraints[slot] = generation.constraint and generation.constraint.copy()
        self.constrain([slot])

    def constrain(self, slots: Iterable[int]) -> bool:
        """Writes what may come next into the rows of those slots that have a grammar; whether there are any. They make
        one token of a dispatch: what may come next is known once the newest token is."""
        held = {slot: own for slot in slots if (own := self._constraints[slot]) is not None}
        self._grammars.fill(held, self._table.allowed)
        for slot, constraint in held.items():
            with self.contained(slot):
                constraint.check()
                self._table.remaining[slot] = min(self._table.remaining[slot], 1)
        return bool(held)

    @contextmanager
    def contained(self, slot: int) -> Generator[None]:
        """Fails the slot's request alone if its settings or tokens raise an error: the others depend on this thread.

        Errors of the device or of the machine (`RuntimeError`, `OSError`, `MemoryError`) end the engine.
        """
        try:
            yield
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            LOG.error("a request failed: %s", error, exc_info=not isinstance(error, GrammarError | NotFiniteError))
            failure = EngineError(f"the request failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            has_bad_pages = isinstance(error, NotFiniteError)
            self.not_finite += has_bad_pages
            self._outbox.put(self.release(slot, has_bad_pages), failure)

    def release(self, slot: int, has_bad_pages: bool = False) -> Generation:
        """Takes a request out of its slot."""
        self._table.close(slot)
        with self._changed:
            return self._scheduler.release(slot, has_bad_pages)

    def prefilled(self, generation: Generation, chunk: Chunk, sampled: Sampled, scored: Sampled | None) -> None:
        """Gives a request the log-probabilities of a chunk, if it asks for them, and after the last one a token."""
        group, end, num_top = self._table.group(chunk.slot), chunk.end, generation.params.prompt_logprobs
        if scored is not None and num_top is not None and not _output(generation).num_tokens:
            generation.prompt_tokens += tokens_of(scored, group, num_top)
        if end == len(generation.prompt):
            if any(math.isnan(token.logprob) for token in generation.prompt_tokens):
                raise NotFiniteError(end)
            self.deliver(chunk.slot, sampled, group, end)

    def pool(self, embedding: Embedding, chunk: Chunk, states: ChunkStates) -> None:
        """Gives an embedding its chunk's states; its slot is free after the last chunk."""
        group = self._table.group(chunk.slot)
        embedding.add(np.asarray(states.sum)[group], np.asarray(states.last)[group])
        if chunk.end == len(embedding.prompt):
            embedding.finish()
            self.release(chunk.slot)
            self._outbox.put(embedding, Event("", (), "stop"))

    def deliver(self, slot: int, sampled: Sampled, row: int, position: int) -> None:
        """Delivers a row's new tokens, the first of them at `position`, to its request, which may end with one of
        them. Tokens that it had before it gave up its slot are not delivered again."""
        generation = self._scheduler.request(slot)
        output, constraint = _output(generation), self._constraints[slot]
        tokens = tokens_of(sampled, row, generation.params.top_logprobs)
        for number, token in enumerate(tokens, position + 1 - len(generation.prompt)):
            is_last = constraint is not None and constraint.push(token.id)
            if number > output.num_tokens:
                output.push(token, is_last)
            remaining = generation.max_tokens - number
            self._table.advance(slot, token.id, len(generation.prompt) + number - 1, remaining)
            if output.finish_reason is not None:
                break
        event = output.take()
        if output.finish_reason is not None:
            self.release(slot)
        if event is not None:
            self._outbox.put(generation, event)
        if output.finish_reason is None and not is_finite(sampled, row):
            raise NotFiniteError(len(generation.prompt) + output.num_tokens)


def _output(generation: Generation) -> Assembler:
    assert generation.output is not None, "it has had a slot"
    return generation.output
