"""Scheduling: which requests hold slots, and what the next dispatches compute. No device, no thread, no clock.

Requests join and leave the running batch at any turn (Yu et al. 2022, "Orca"). A turn drops cancelled requests, gives
free slots to queued ones, prefills some chunks of prompts, and makes a few decode steps for all slots together. What
must hold: a slot is free or holds one request; every accepted request leaves exactly once; requests are admitted in
order of arrival; a prompt is chunked by its own length only, so that a request's computation does not depend on the
others.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

# A chunk's padded length, for each of which prefill is compiled; of 135 M parameters in float32 on two cores they take
# 55, 150, 267 and 528 ms.
BUCKETS = (16, 64, 128, 256)
PREFILL_TOKENS = 512  # a group of slots takes chunks until it has this many padded tokens, then decodes
# Decode steps in one dispatch, at most. 199 tokens of a 1.3 M-parameter model, context 512, CPU-seconds with 1 and with
# 16 steps a dispatch: one slot 0.15 and 0.05, eight slots 0.36 and 0.28.
MAX_STEPS = 16
DISPATCH_S = 0.03  # how long one dispatch of decode steps should take, so that streams look smooth
STEP_WEIGHT = 0.2  # of the newest measurement in the running mean of a decode step's time


class QueueFullError(RuntimeError):
    """The queue is full; try again later."""


class ClosedError(RuntimeError):
    """No more requests are accepted."""


class Request(Protocol):
    """The part of a request that the scheduler reads."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to end at the next turn."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Tokens `start ... start + size - 1` of the prompt in a slot, padded to `padded`."""

    slot: int
    start: int
    size: int
    padded: int


def prompt_chunks(length: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a prompt of `length` tokens: `(start, size, padded)` of each chunk."""
    for start in range(0, length, BUCKETS[-1]):
        size = min(BUCKETS[-1], length - start)
        yield start, size, next(bucket for bucket in BUCKETS if bucket >= size)


@dataclass
class _Slot[R]:
    """A slot's request and the chunks of its prompt that are not prefilled."""

    request: R
    chunks: deque[Chunk]


class Scheduler[R: Request]:
    """Queued requests and slots. `num_groups` groups of neighbouring slots are prefilled in parallel."""

    def __init__(self, num_slots: int, max_queue: int, num_groups: int = 1, dispatch_s: float = DISPATCH_S) -> None:
        """`dispatch_s` is the duration that `decode_steps` aims at; with infinity it always plans `MAX_STEPS`."""
        assert num_slots % num_groups == 0, "groups have the same number of slots"
        self.num_slots, self.max_queue = num_slots, max_queue
        self._group_size = num_slots // num_groups
        self._dispatch_s = dispatch_s
        self._step_s = DISPATCH_S / 2
        self._waiting: deque[R] = deque()
        self._slots: dict[int, _Slot[R]] = {}
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
        return {slot: held.request for slot, held in self._slots.items() if not held.chunks}

    def request(self, slot: int) -> R:
        """The request that holds a slot."""
        return self._slots[slot].request

    def accept(self, request: R) -> None:
        """Puts a request into the queue; raises `QueueFullError` or `ClosedError`."""
        if self._is_closed:
            raise ClosedError("the engine is shutting down")
        if len(self._waiting) >= self.max_queue + len(self._free):
            raise QueueFullError(
                f"{self.num_slots} requests are running and {self.max_queue} queued, which is the limit; retry later"
            )
        self._waiting.append(request)

    def close(self) -> None:
        """Rejects further requests; accepted ones continue."""
        self._is_closed = True

    def abort(self) -> list[R]:
        """Closes and removes every request that has not left."""
        self.close()
        removed = [*self._waiting, *(held.request for held in self._slots.values())]
        self._waiting.clear()
        for slot in list(self._slots):
            self.release(slot)
        return removed

    def remove_cancelled(self) -> tuple[list[R], list[int]]:
        """Removes cancelled requests from the queue and from their slots; returns the requests and the freed slots."""
        removed = [request for request in self._waiting if request.is_cancelled]
        self._waiting = deque(request for request in self._waiting if request not in removed)
        freed = [slot for slot, held in self._slots.items() if held.request.is_cancelled]
        return removed + [self.release(slot) for slot in freed], freed

    def admit(self) -> list[tuple[int, R]]:
        """Gives free slots, of the emptiest groups first, to the requests that have waited longest."""
        admitted: list[tuple[int, R]] = []
        while self._free and self._waiting:
            slot, request = self._take_slot(), self._waiting.popleft()
            chunks = deque(Chunk(slot, *cut) for cut in prompt_chunks(len(request.prompt)))
            self._slots[slot] = _Slot(request, chunks)
            admitted.append((slot, request))
        return admitted

    def _take_slot(self) -> int:
        active = Counter(slot // self._group_size for slot in self._slots)
        slot = min(self._free, key=lambda slot: (active[slot // self._group_size], slot))
        self._free.remove(slot)
        return slot

    def take_prefills(self) -> list[list[Chunk]]:
        """This turn's prefill dispatches, in order: chunks of one padded length, at most one of each group of slots.

        Within a group the oldest request goes first, up to `PREFILL_TOKENS`.
        """
        queues = [self._take_chunks(group) for group in range(self.num_slots // self._group_size)]
        dispatches: list[list[Chunk]] = []
        while queues := [queue for queue in queues if queue]:
            padded = Counter(queue[0].padded for queue in queues).most_common(1)[0][0]
            dispatches.append([queue.popleft() for queue in queues if queue[0].padded == padded])
        return dispatches

    def _take_chunks(self, group: int) -> deque[Chunk]:
        taken: deque[Chunk] = deque()
        budget = PREFILL_TOKENS
        for slot, held in self._slots.items():
            while budget > 0 and held.chunks and slot // self._group_size == group:
                taken.append(held.chunks.popleft())
                budget -= taken[-1].padded
        return taken

    def decode_steps(self) -> int:
        """The number of decode steps of the next dispatch; 0 if no slot decodes."""
        if not self.decoding:
            return 0
        return int(min(max(self._dispatch_s / self._step_s, 1), MAX_STEPS))

    def measured(self, step_s: float) -> None:
        """Updates the running mean of a decode step's time."""
        self._step_s += STEP_WEIGHT * (step_s - self._step_s)

    def release(self, slot: int) -> R:
        """Frees the slot of a request that has ended."""
        self._free.add(slot)
        return self._slots.pop(slot).request
