"""Scheduling: who holds slots and pages, and what the next dispatches compute. No device, no thread, no clock.

Requests join and leave the running batch at any turn (Yu et al. 2022, "Orca"). A turn drops cancelled requests, gives
free slots to queued ones, prefills some chunks of prompts, and makes a few decode steps for all slots together. Where
pages run out, the youngest request gives up its slot and waits to be computed again. What must hold: a slot is free or
holds one request; every accepted request leaves exactly once; requests are admitted by priority and then in order of
arrival, but none is passed over for ever; a prompt is chunked by its own length only, so that a request's computation
does not depend on the others.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from lifecycle.inference.chunks import Chunk, prompt_chunks
from lifecycle.inference.pages import GroupPages, PagePlan, chunk_names
from lifecycle.inference.requests import Asked, ClosedError, HeldSlot, QueueFullError, Request, most_tokens

PREFILL_TOKENS = 512  # a group of slots takes chunks until it has this many padded tokens, then decodes
# The same for each slot where nobody reads along: a decode step takes as long for few of them (docs/log.md, "eight
# answers"). Beside dispatches of `MAX_STEPS` it keeps all slots busy with prompts up to four times as long as outputs.
FILL_TOKENS = 64
# Decode steps in one dispatch, at most. 199 tokens of a 1.3 M-parameter model, context 512, CPU-seconds with 1 and with
# 16 steps a dispatch: one slot 0.15 and 0.05, eight slots 0.36 and 0.28.
MAX_STEPS = 16
# How long one dispatch of decode steps should take, so that streams look smooth; and twice that while all slots decode
# and nobody waits for one: a dispatch costs 2 ms of host time (SmolLM2-135M, float32, eight streams on two cores: 0.89
# of the bare loop's tokens, and 0.92).
DISPATCH_S = 0.05
# The same where a row has a grammar and makes one token in a dispatch. Seven rows without one and one with it, of 1.6 M
# parameters, tokens per CPU-second with 1, 4 and 16 steps: 2,110, 3,750 and 4,850 of the seven, 302, 137 and 48 of the
# one. A step that takes 10 ms is one dispatch.
CONSTRAINED_S = 0.01
STEP_WEIGHT = 0.2  # of the newest measurement in the running mean of a decode step's time
MAX_PASSED = 64  # requests of a higher priority that may be admitted before one that has waited longer


class Admission[R](NamedTuple):
    """A request that has got a slot; its first `num_cached` tokens need not be computed."""

    slot: int
    request: R
    num_cached: int


class Fork(NamedTuple):
    """A slot whose request goes on from the last `chunk` of another one's equal prompt."""

    chunk: Chunk
    slot: int


class Scheduler[R: Request]:
    """Queued requests, slots and pages. `num_groups` groups of neighbouring slots are prefilled in parallel, each with
    the pages of `plan`."""

    def __init__(
        self,
        num_slots: int,
        max_queue: int,
        plan: PagePlan,
        num_groups: int = 1,
        dispatch_s: float = DISPATCH_S,
        may_fork: bool = True,
    ) -> None:
        """`dispatch_s` is the duration that `decode_steps` aims at, as `DISPATCH_S` says; with infinity, where nobody
        reads along, it always plans `MAX_STEPS`, and larger groups of slots are prefilled faster. `may_fork`: whether
        equal prompts in a group of slots are computed once."""
        assert num_slots % num_groups == 0, "groups have the same number of slots"
        self.num_slots, self.max_queue = num_slots, max_queue
        self._group_size = num_slots // num_groups
        self._plan = plan
        self._pages = [GroupPages(plan) for _ in range(num_groups)]
        self._dispatch_s, self._may_fork = dispatch_s, may_fork
        fill = FILL_TOKENS * self._group_size if dispatch_s == math.inf else 0
        self._prefill_tokens = max(PREFILL_TOKENS, fill)
        self._step_s = DISPATCH_S / 2
        self._num_accepted = 0
        self._waiting: list[Asked[R]] = []
        self._slots: dict[int, HeldSlot[R]] = {}
        self._free = set(range(num_slots))
        self._is_closed = False

    @property
    def num_active(self) -> int:
        """Slots that hold a request."""
        return len(self._slots)

    @property
    def num_free(self) -> int:
        """Free slots."""
        return len(self._free)

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or holds a slot."""
        return bool(self._waiting or self._slots)

    @property
    def is_done(self) -> bool:
        """Whether it is closed and every accepted request has left."""
        return self._is_closed and not self.has_work

    @property
    def decoding(self) -> dict[int, R]:
        """Slots whose prompt is prefilled, and their requests."""
        return {slot: held.asked.request for slot, held in self._slots.items() if not held.chunks}

    @property
    def num_pages(self) -> dict[str, int]:
        """The pages of all groups and kinds by state: free, cached or used."""
        pools = [pool for pages in self._pages for pool in pages.pools.values()]
        states = [(pool.num_free, pool.num_cached, pool.num_used) for pool in pools]
        return dict(zip(("free", "cached", "used"), map(sum, zip(*states, strict=True)), strict=True))

    @property
    def requests(self) -> list[R]:
        """Every request that has not left."""
        return [asked.request for asked in [*self._waiting, *(held.asked for held in self._slots.values())]]

    @property
    def pages(self) -> Sequence[GroupPages]:
        """The pages of each group."""
        return self._pages

    def request(self, slot: int) -> R:
        """The request that holds a slot."""
        return self._slots[slot].asked.request

    def tables(self, slot: int) -> dict[str, list[int]]:
        """The pages of a slot by kind, in the order of its positions."""
        return self._slots[slot].row.tables

    def accept(self, request: R) -> None:
        """Puts a request into the queue; raises `QueueFullError` or `ClosedError`."""
        if self._is_closed:
            raise ClosedError("the engine is shutting down")
        if len(self._waiting) >= self.max_queue + len(self._free):
            raise QueueFullError(
                f"{self.num_slots} requests are running and {self.max_queue} queued, which is the limit; retry later"
            )
        self._num_accepted += 1
        names = chunk_names(request.prompt, self._plan.chunk, request.cache_key)
        twin_key = request.twin_key if self._may_fork else None
        self._waiting.append(Asked(request, self._num_accepted, names, twin_key, len(request.prompt)))

    def close(self) -> None:
        """Rejects further requests; accepted ones continue."""
        self._is_closed = True

    def remove_cancelled(self) -> tuple[list[R], list[int]]:
        """Removes cancelled requests from the queue and from their slots; returns the requests and the freed slots."""
        removed = [asked for asked in self._waiting if asked.request.is_cancelled]  # read once: any thread may cancel
        self._waiting = [asked for asked in self._waiting if asked not in removed]
        freed = [slot for slot, held in self._slots.items() if held.asked.request.is_cancelled]
        return [asked.request for asked in removed] + [self.release(slot) for slot in freed], freed

    def admit(self) -> list[Admission[R]]:
        """Gives free slots to the requests whose turn it is: where most of a prompt is cached, then where an equal one
        waits to be computed, then of the emptiest groups. None goes before one that finds no pages."""
        admitted: list[Admission[R]] = []
        while self._free and self._waiting:
            asked = self._next()
            if (admission := self._open(asked)) is None:
                break
            self._waiting.remove(asked)
            for other in self._waiting:
                other.passed += other.number < asked.number
            admitted.append(admission)
        return admitted

    def _next(self) -> Asked[R]:
        oldest = min(self._waiting, key=lambda asked: asked.number)
        if oldest.passed >= MAX_PASSED:
            return oldest
        return min(self._waiting, key=lambda asked: (asked.request.priority, asked.number))

    def _open(self, asked: Asked[R]) -> Admission[R] | None:
        """A slot for a request, with pages for the tokens that it has; None if no group has so many."""
        length, names = len(asked.request.prompt), asked.names
        shared = [pages.num_shared(names, length) if asked.request.may_share else 0 for pages in self._pages]
        active, twins = Counter(map(self._group, self._slots)), self._groups_of_twins(asked.twin_key)
        for slot in sorted(self._free, key=lambda s: (-shared[(g := self._group(s))], g not in twins, active[g], s)):
            group = self._group(slot)
            row = self._pages[group].open_row(names, shared[group], asked.needed)
            if row is None:
                continue
            self._free.remove(slot)
            self._slots[slot] = HeldSlot(asked, row, length, self._chunks(slot, length, shared[group]))
            return Admission(slot, asked.request, shared[group])
        return None

    def _groups_of_twins(self, key: bytes | None) -> set[int]:
        """The groups with a slot whose prompt is equal and not yet whole."""
        if key is None:
            return set()
        return {self._group(slot) for slot, held in self._slots.items() if held.chunks and held.asked.twin_key == key}

    def _chunks(self, slot: int, length: int, num_shared: int) -> deque[Chunk]:
        cuts = enumerate(prompt_chunks(length, self._plan.buckets, num_shared))
        return deque(Chunk(slot, *cut, is_first=number == 0) for number, cut in cuts)

    def _group(self, slot: int) -> int:
        return slot // self._group_size

    def take_prefills(self) -> list[list[Chunk]]:
        """This turn's prefill dispatches, in order: chunks of one padded length, at most one of each group of slots.

        Within a group the oldest request goes first, up to a number of tokens. A request whose prompt another
        one's slot computes waits for it (`forks`).
        """
        queues = [self._take_chunks(group) for group in range(len(self._pages))]
        dispatches: list[list[Chunk]] = []
        while queues := [queue for queue in queues if queue]:
            padded = Counter(queue[0].padded for queue in queues).most_common(1)[0][0]
            dispatches.append([queue.popleft() for queue in queues if queue[0].padded == padded])
        return dispatches

    def _take_chunks(self, group: int) -> deque[Chunk]:
        taken: deque[Chunk] = deque()
        budget = self._prefill_tokens
        computing: set[bytes] = set()
        for slot, held in self._slots.items():
            if budget <= 0:
                break
            key = held.asked.twin_key
            if self._group(slot) != group or not held.chunks or key in computing:
                continue
            if key is not None:
                computing.add(key)
                if held.is_untouched:
                    self._share_more(slot, held)
            while budget > 0 and held.chunks:
                taken.append(held.chunks.popleft())
                budget -= taken[-1].padded
        return taken

    def place(self, chunk: Chunk) -> None:
        """Gives a chunk of `take_prefills` its pages, right before its dispatch; those of a whole chunk can be shared
        from then on."""
        held, pages = self._slots[chunk.slot], self._pages[self._group(chunk.slot)]
        pages.move(held.row, chunk.start, chunk.end)
        if chunk.size == self._plan.chunk:
            pages.name_chunk(held.row, chunk.start)

    def forks(self, chunk: Chunk) -> list[Fork]:
        """The slots that go on from a chunk which has just been computed, the last of its prompt, and of which they
        have room for a copy; with its copy each has its whole prompt. What comes before the chunk they share."""
        held, group = self._slots[chunk.slot], self._group(chunk.slot)
        key = held.asked.twin_key
        if key is None or chunk.end < held.length:
            return []
        found: list[Fork] = []
        for slot, other in self._slots.items():
            if other.asked.twin_key == key and self._group(slot) == group and other.is_untouched:
                self._share_more(slot, other)
                if other.chunks[0].start == chunk.start:
                    other.chunks.clear()
                    self._pages[group].move(other.row, chunk.start, chunk.end)
                    found.append(Fork(chunk, slot))
        return found

    def _share_more(self, slot: int, held: HeldSlot[R]) -> None:
        """Shares what has been cached since the request got its slot."""
        pages, asked = self._pages[self._group(slot)], held.asked
        shared = pages.num_shared(asked.names, held.length)
        if shared <= held.chunks[0].start:  # or less, if pages with bad contents have lost their names
            return
        pages.close_row(held.row)
        row = pages.open_row(asked.names, shared, asked.needed)
        assert row is not None, "it needs no more pages than it has given back"
        held.row, held.chunks = row, self._chunks(slot, held.length, shared)

    def decode_steps(self, is_constrained: bool = False) -> int:
        """The number of decode steps of the next dispatch; 0 if no slot decodes. `is_constrained`: some slots make only
        one."""
        if not self.decoding:
            return 0
        is_full = len(self.decoding) == self.num_slots and not self._waiting
        dispatch_s = self._dispatch_s * (2 if is_full else 1)
        wanted_s = min(dispatch_s, CONSTRAINED_S) if is_constrained else dispatch_s
        return round(min(max(wanted_s / self._step_s, 1), MAX_STEPS))

    def make_room(self, num_steps: int) -> list[int]:
        """Gives every decoding slot pages for so many steps. Where they run out, the youngest requests of the group
        give up their slots, which are returned, and go back to the queue."""
        given_up: list[int] = []
        for slot, held in sorted(self._slots.items(), key=lambda item: item[1].age):
            if held.chunks or slot not in self._slots:
                continue
            pages, end = self._pages[self._group(slot)], min(held.length + num_steps, most_tokens(held.asked.request))
            while slot in self._slots and pages.lacks(held.row, end):
                given_up.append(self._give_up_youngest(self._group(slot)))
            if slot in self._slots:
                pages.move(held.row, held.length, end)
        return given_up

    def _give_up_youngest(self, group: int) -> int:
        slot = max((s for s in self._slots if self._group(s) == group), key=lambda s: self._slots[s].age)
        asked, length = self._slots[slot].asked, self._slots[slot].length
        # a page more than it had, or it would come back at once only to give up again
        asked.needed = min(max(asked.needed, length + self._plan.size), most_tokens(asked.request))
        self.release(slot)
        self._waiting.append(asked)
        return slot

    def advance(self, slot: int, num_tokens: int) -> None:
        """So many tokens of a decoding slot have come into its pages."""
        self._slots[slot].length += num_tokens

    def measured(self, step_s: float) -> None:
        """Updates the running mean of a decode step's time."""
        self._step_s += STEP_WEIGHT * (step_s - self._step_s)

    def release(self, slot: int, has_bad_pages: bool = False) -> R:
        """Frees the slot and the pages of a request that has ended; those with bad contents are not shared."""
        held, pages = self._slots.pop(slot), self._pages[self._group(slot)]
        if has_bad_pages:
            pages.forget_names(held.row)
        pages.close_row(held.row)
        self._free.add(slot)
        return held.asked.request
