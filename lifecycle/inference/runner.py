"""Runs requests through the programs, one turn at a time, in the caller's thread.

What must hold: a request's output does not depend on the rest of the batch; every submitted request gets a last event;
an error while one request is handled fails that request only.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import batched, zip_longest

from jax.sharding import Mesh

from lifecycle.core.platform import platform
from lifecycle.inference.adapters import BankSizes, HeldAdapter, leased
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.drafting import Drafter
from lifecycle.inference.forks import FORKS
from lifecycle.inference.generation import (
    EngineError,
    Event,
    Generation,
)
from lifecycle.inference.intake import Intake
from lifecycle.inference.model import Model
from lifecycle.inference.outbox import Outbox
from lifecycle.inference.pooling import Embedding, Pooling
from lifecycle.inference.programs import Programs
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.scheduler import DISPATCH_S, Scheduler
from lifecycle.inference.slot_requests import SlotRequests
from lifecycle.inference.slots import SlotTable
from lifecycle.inference.speculation import DraftPolicy
from lifecycle.inference.stats import EngineStats
from lifecycle.inference.turns import ALONE, Witness
from lifecycle.model.config import CacheFormat

type DispatchObserver = Callable[[float, Mapping[str, int]], None]  # device-seconds; tokens, by request


class Runner:
    """Requests, slots and programs of one model. `submit` from any thread; one thread takes the turns.

    `changed` guards the scheduler and is notified when there is new work.
    """

    def __init__(
        self,
        model: Model,
        num_slots: int,
        max_queue: int,
        max_seq_len: int | None = None,
        on_dispatch: DispatchObserver | None = None,
        dispatch_s: float = DISPATCH_S,
        mesh: Mesh | None = None,
        cache_tokens: int | None = None,
        drafter: Drafter | None = None,
        witness: Witness = ALONE,
        kv_cache: CacheFormat | None = None,
        adapters: BankSizes | None = None,
        num_kept: int | None = None,
        num_ids: int | None = None,
    ) -> None:
        """`num_kept` and `num_ids` as in `generate`. Raises `ConfigError` for a mesh that does not fit the model or the
        slots, or too few `cache_tokens`."""
        self.model = model.without_weights
        self.max_seq_len = min(max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
        self.changed = threading.Condition()
        self._on_dispatch, self._witness = on_dispatch, witness
        self._outbox = Outbox()
        self._arrived: list[Generation] = []  # since the last turn began
        length, vocab_size = self.max_seq_len, model.config.vocab_size
        self._programs = Programs(
            model.config,
            model.params,
            num_slots,
            length,
            min(model.tokenizer.vocab_size, num_ids or vocab_size),
            mesh=mesh,
            cache_tokens=cache_tokens,
            kv_cache=kv_cache,
            drafter=drafter,
            adapters=adapters,
            on_launch=witness.launch,
            on_launched=self._outbox.send,
        )
        self.adapters = self._programs.adapters
        plan, groups = self._programs.plan, self._programs.num_groups
        self._scheduler = Scheduler[Generation](
            num_slots, max_queue, plan, groups, dispatch_s, may_fork=drafter is None
        )
        self.takes_predictions = drafter is not None and drafter.reads_context
        needs = {"has_context": self.takes_predictions, "has_bank": adapters is not None}
        self._table = SlotTable(num_slots, plan, length, vocab_size, groups, **needs, num_kept=num_kept)
        self._drafts = None if drafter is None else DraftPolicy()
        self._tokens_per_step = 1 if drafter is None else 1 + drafter.num_tokens  # at most
        self._intake = Intake(model, length)
        self._held = SlotRequests(
            model.tokenizer, self._intake.grammars, self._scheduler, self._table, self._outbox, self.changed
        )
        self._counters = EngineStats(cache_bytes=self._programs.cache_bytes)
        self.max_requests = num_slots + max_queue

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        adapter: HeldAdapter | None = None,
        prediction: Sequence[int] = (),
    ) -> Generation:
        """Queues a request of token ids, with an adapter of `adapters`. `prediction`: what the output may be, for an
        engine that `takes_predictions`; it changes no token.

        Raises `ContextLengthError` if prompt and output do not fit, `QueueFullError`, `ClosedError`, `GrammarError`,
        `ForbiddenError`, `AdapterError` for an adapter that has been unloaded, or `ValueError` for ids that the
        tokenizer does not have, and a prediction that cannot be used.
        """
        if prediction and not self.takes_predictions:
            raise ValueError(
                "a prediction needs a drafter that looks up tokens: make the engine with Ngram(num_tokens=4)"
            )
        return self._accept(self._intake.generation(prompt, params, prediction), adapter)

    def embed(self, prompt: Sequence[int], pooling: Pooling, adapter: HeldAdapter | None = None) -> Embedding:
        """Queues a request for the vector of a prompt, which may fill the context. Raises what `submit` raises."""
        return self._accept(self._intake.embedding(prompt, pooling), adapter)

    def _accept[G: Generation](self, generation: G, adapter: HeldAdapter | None) -> G:
        with self.changed, leased(self.adapters, adapter) as generation.adapter:
            self._scheduler.accept(generation)
            self._arrived.append(generation)
            self.changed.notify()
        return generation

    def compile(self, grammar: str) -> None:
        """Makes a grammar ready, from any thread: `submit` then takes no time for it. Raises `GrammarError`."""
        self._intake.grammars.constraint(grammar)

    def close(self) -> None:
        """Rejects further requests; accepted ones continue."""
        with self.changed:
            self._scheduler.close()
            self.changed.notify()

    def abort(self, error: EngineError) -> None:
        """Closes, and fails every request that has not ended; from any thread, also while a turn hangs. No turn may
        follow."""
        with self.changed:
            self._scheduler.close()
            pending = self._scheduler.requests
        self._outbox.send()
        for generation in pending:
            generation.put(error)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""
        return self._scheduler.has_work

    @property
    def is_done(self) -> bool:
        """Whether it is closed and every request has ended."""
        return self._scheduler.is_done

    @property
    def stats(self) -> EngineStats:
        """The counters, and how many requests are running and queued."""
        with self.changed:
            active, waiting, pages = self._scheduler.num_active, self._scheduler.num_waiting, self._scheduler.num_pages
            own = {"cached_tokens": self._held.cached_tokens, "not_finite": self._held.not_finite}
            return replace(self._counters, active=active, waiting=waiting, pages=pages, **own)

    def warm_up(self) -> None:
        """Compiles every shape. Accelerators run each too, writing nothing: they may lack the memory for it."""
        prefills = [self._table.prompt_rows([Chunk(0, 0, 0, padded)], [[]]) for padded in self._programs.plan.buckets]
        decode = self._table.decode_rows(0)
        forks = [self._table.fork_rows([])] if self._drafts is None and self._table.group_size > 1 else []
        self._programs.compile([decode, *prefills, *forks])
        if platform() != "cpu":
            for rows in prefills:
                self._programs.prefill(rows)
            for rows in forks:
                self._programs.fork(rows)
            self._programs.decode(decode)
        self._intake.grammars.warm_up()
        if self.adapters is not None:
            self.adapters.warm_up()

    def turn(self) -> None:
        """Removes cancelled requests, admits queued ones, prefills some chunks, makes a few decode steps.

        A request that gave up its slot begins again, and makes the same tokens again, to the last bit. Events of a turn
        are sent by the next one, while the devices compute; in a job of several processes, whose engines take turns, at
        once.
        """
        goes_on = False
        try:
            self._begin()
            self._prefill()
            self._decode()
            goes_on = bool(self._scheduler.decoding) and self._witness is ALONE
        finally:
            if not goes_on:
                self._outbox.send()

    def _begin(self) -> None:
        """What other threads do to the scheduler counts up to here, for the whole turn."""
        with self.changed:
            removed, freed = self._scheduler.remove_cancelled()
            admitted = self._scheduler.admit()
            arrived, self._arrived = self._arrived, []
        self._witness.begin(arrived, removed)
        for slot in freed:
            self._table.close(slot)
        for generation in removed:
            self._outbox.put(generation, Event("", (), "cancelled"))
        for slot, generation, num_cached in admitted:
            with self._held.contained(slot):
                self._held.open(slot, generation, num_cached)

    def _prefill(self) -> None:
        with self.changed:
            dispatches = self._scheduler.take_prefills()
        for chunks in dispatches:
            self._prefill_chunks(chunks)

    def _prefill_chunks(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._scheduler.place(chunk)
            self._table.set_pages(chunk.slot, self._scheduler.tables(chunk.slot))
        generations = [self._scheduler.request(chunk.slot) for chunk in chunks]
        rows = self._table.prompt_rows(chunks, [generation.prompt for generation in generations])
        began = time.perf_counter()
        sampled, scored, states = self._programs.prefill(rows)
        self._charge(began, {g.id: chunk.size for g, chunk in zip(generations, chunks, strict=True)})
        counters, num_tokens = self._counters, sum(chunk.size for chunk in chunks)
        self._counters = replace(counters, prefill_tokens=counters.prefill_tokens + num_tokens)
        self._fork(chunks)
        for generation, chunk in zip(generations, chunks, strict=True):
            with self._held.contained(chunk.slot):
                if isinstance(generation, Embedding):
                    self._held.pool(generation, chunk, states)
                else:
                    self._held.prefilled(generation, chunk, sampled, scored)

    def _fork(self, chunks: Sequence[Chunk]) -> None:
        """Lets requests go on from chunks that others have just got, before any of those may end."""
        for forks in zip_longest(*(batched(self._scheduler.forks(chunk), FORKS) for chunk in chunks)):
            of_groups = [own for own in forks if own is not None]
            every = [fork for own in of_groups for fork in own]
            for _, slot in every:
                self._table.set_pages(slot, self._scheduler.tables(slot))
            began = time.perf_counter()
            sampled = self._programs.fork(self._table.fork_rows(of_groups))
            self._charge(began, {self._scheduler.request(slot).id: 1 for _, slot in every})
            for own in of_groups:
                for number, (chunk, slot) in enumerate(own, FORKS * self._table.group(own[0].slot)):
                    with self._held.contained(slot):
                        self._held.deliver(slot, sampled, number, chunk.end)

    def _decode(self) -> None:
        is_constrained = self._held.constrain(self._scheduler.decoding)
        num_steps = self._witness.agreed(self._scheduler.decode_steps(is_constrained))
        num_rows = len(self._scheduler.decoding)
        may_draft = self._witness.agreed(self._drafts is not None and self._drafts.wants_drafts(num_rows))
        self._make_room(num_steps * (self._tokens_per_step if may_draft else 1))
        decoding = self._scheduler.decoding
        if not decoding:
            return
        began = time.perf_counter()
        decoded = self._programs.decode(self._table.decode_rows(num_steps, may_draft))
        took_s = time.perf_counter() - began
        self._scheduler.measured(took_s / int(decoded.num_steps.max()))
        made = decoded.num_tokens
        if self._drafts is not None:
            self._drafts.measured(num_rows, may_draft, int(made.sum()) / took_s)
        self._charge(began, {generation.id: int(made[slot]) for slot, generation in decoding.items()})
        self._counters = self._counters.with_dispatch(decoded)
        for slot in decoding:
            self._scheduler.advance(slot, int(made[slot]))
            with self._held.contained(slot):
                self._held.deliver(slot, decoded.sampled, slot, int(self._table.position[slot]) + 1)

    def _make_room(self, num_steps: int) -> None:
        """Gives the decoding slots their pages; some requests may have to wait for theirs."""
        with self.changed:
            given_up = self._scheduler.make_room(num_steps)
        for slot in given_up:
            self._table.close(slot)
        self._counters = replace(self._counters, given_up=self._counters.given_up + len(given_up))
        for slot in self._scheduler.decoding:
            self._table.set_pages(slot, self._scheduler.tables(slot))

    def _charge(self, began: float, tokens: Mapping[str, int]) -> None:
        """Reports to the observer how long a finished dispatch took, and for which requests."""
        if self._on_dispatch is not None:
            held_s = (time.perf_counter() - began) * self._programs.num_devices
            self._on_dispatch(held_s, {request: count for request, count in tokens.items() if count})
