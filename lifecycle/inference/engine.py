"""Continuous batching (Yu et al. 2022, "Orca"): requests join and leave the decoding batch at any step.

A fixed number of slots, one row of the cache each. One thread owns the device. Each of its turns: waiting requests
take free slots, some prompt chunks are prefilled, and all decoding slots together make a few steps in one dispatch.
What must hold: a request's output does not depend on what else is in the batch; every request that was accepted gets a
last event.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.inference.decode import BUCKETS, MAX_STEPS, chunks, decode, prefill
from lifecycle.inference.generation import Assembler, EngineError, Event, Generation, Token
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import Sampled, SamplingParams
from lifecycle.inference.slots import SlotTable
from lifecycle.model.cache import init_cache
from lifecycle.model.decoder import compute_dtype

type StepObserver = Callable[[float, Mapping[str, int]], None]  # core-seconds of a step, tokens in it by request

PREFILL_TOKENS = 512  # padded tokens of prompts in one turn: decoding slots do not wait longer than that
DISPATCH_S = 0.03  # how long one dispatch of decode steps should take: streams look smooth, host work is spread
DEVICE = threading.Lock()  # one step at a time in a process, so that each step's core-seconds are its own


class ContextLengthError(ValueError):
    """A request that does not fit the context."""


class QueueFullError(RuntimeError):
    """No room in the waiting line; try again later."""


class ClosedError(RuntimeError):
    """The engine takes no requests any more."""


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and the state now."""

    decode_steps: int = 0
    decode_tokens: int = 0  # divided by decode_steps: how many requests decoded together
    prefill_tokens: int = 0
    largest_batch: int = 0
    active: int = 0
    waiting: int = 0


@dataclass
class _Running:
    """A request in a slot."""

    generation: Generation
    assembler: Assembler
    todo: Iterator[tuple[int, int, int]]  # chunks of the prompt that are not prefilled
    is_prefilled: bool = False


@dataclass
class _Counters:
    decode_steps: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    largest_batch: int = 0
    step_s: float = DISPATCH_S / 2  # running mean of a decode step's time
    running: dict[int, _Running] = field(default_factory=dict)


class Engine:
    """Runs one model. `submit` from any thread; close it, or use it in a `with` block."""

    def __init__(
        self,
        model: Model,
        num_slots: int = 8,
        max_queue: int = 64,
        max_seq_len: int | None = None,
        on_step: StepObserver | None = None,
        warm_up: bool = False,
    ) -> None:
        """`max_seq_len` shortens the model's context; `warm_up` compiles everything before the first request."""
        self.model = model
        self.num_slots = num_slots
        self.max_queue = max_queue
        self.max_seq_len = min(max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
        self._on_step = on_step
        self._num_ids = model.tokenizer.vocab_size
        dtype = compute_dtype(model.config)
        self._params = jax.tree.map(lambda p: jnp.asarray(p, dtype), model.params)  # cast once, not in every step
        self._cache = init_cache(model.config, num_slots, self.max_seq_len, dtype)
        self._slots = SlotTable(num_slots)
        self._free = list(reversed(range(num_slots)))
        self._counters = _Counters()
        self._queue: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_broken = False
        if warm_up:
            self._warm_up()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Generation:
        """Queues a request of token ids.

        Raises `ContextLengthError` if prompt and output do not fit, `QueueFullError`, `ClosedError`, `EngineError`.
        """
        self.max_tokens(len(prompt), params)
        if min(prompt) < 0 or max(prompt) >= self._num_ids:
            raise ValueError(f"the prompt has token ids outside the tokenizer's {self._num_ids}")
        generation = Generation(prompt, params)
        with self._changed:
            if self._is_broken:
                raise EngineError("the engine has stopped by an error; its traceback is in the log")
            if self._is_closing:
                raise ClosedError("the engine is closing and takes no more requests")
            if len(self._queue) >= self.max_queue + len(self._free):
                raise QueueFullError(f"{self.num_slots} requests are running and {self.max_queue} may wait, no more")
            self._queue.append(generation)
            self._changed.notify()
        return generation

    def max_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        """How many tokens a request may generate; raises `ContextLengthError` if it does not fit."""
        if prompt_len == 0:
            raise ContextLengthError("the prompt has no tokens; it needs at least one, for example the BOS")
        room = self.max_seq_len - prompt_len
        wanted = params.max_tokens if params.max_tokens is not None else max(room, 1)
        if wanted > room:
            raise ContextLengthError(
                f"the context holds {self.max_seq_len} tokens, but {prompt_len + wanted} were asked for "
                f"({prompt_len} in the prompt, {wanted} to generate); shorten one of them"
            )
        return wanted

    @property
    def stats(self) -> EngineStats:
        c = self._counters
        counts = (c.decode_steps, c.decode_tokens, c.prefill_tokens, c.largest_batch)
        return EngineStats(*counts, active=len(c.running), waiting=len(self._queue))

    @property
    def is_alive(self) -> bool:
        return not self._is_broken and self._thread.is_alive()

    def close(self) -> None:
        """Lets accepted requests end, then stops the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._admit()
                self._prefill()
                self._decode()
        finally:
            self._end()

    def _wait_for_work(self) -> bool:
        """Sleeps while there is nothing to do; False when the engine is closed and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._counters.running or self._is_closing)
            return bool(self._queue or self._counters.running)

    def _end(self) -> None:
        """After an error, tells everybody who waits."""
        with self._changed:
            left = [*self._queue, *(running.generation for running in self._counters.running.values())]
            self._is_broken = bool(left) or not self._is_closing
            self._queue.clear()
            self._counters.running.clear()
        for generation in left:
            generation.put(EngineError("the engine has stopped by an error; its traceback is in the log"))

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = [generation for generation in self._queue if generation.is_cancelled]
            for generation in dropped:
                self._queue.remove(generation)
        for generation in dropped:
            generation.put(Event("", (), "cancelled"))
        for slot, running in list(self._counters.running.items()):
            if running.generation.is_cancelled:
                self._release(slot)
                running.generation.put(Event("", (), "cancelled"))

    def _admit(self) -> None:
        while self._free:
            with self._changed:
                if not self._queue:
                    return
                generation = self._queue.popleft()
                slot = self._free.pop()
                self._counters.running[slot] = self._start(generation)
            params = generation.params
            seed = params.seed if params.seed is not None else secrets.randbits(64)
            self._slots.open(slot, params, seed, self._stop_ids(params))

    def _start(self, generation: Generation) -> _Running:
        params, length = generation.params, len(generation.prompt)
        stop_ids, most = self._stop_ids(params), self.max_tokens(length, params)
        return _Running(generation, Assembler(self.model.tokenizer, params, stop_ids, most), chunks(length))

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        return params.stop_ids if params.stop_ids is not None else self.model.stop_ids

    def _release(self, slot: int) -> None:
        with self._changed:
            del self._counters.running[slot]
        self._slots.close(slot)
        self._free.append(slot)

    def _prefill(self) -> None:
        """Prompt chunks, the oldest request's first, up to the budget of a turn."""
        budget = PREFILL_TOKENS
        for slot, running in list(self._counters.running.items()):
            while budget > 0 and not running.is_prefilled:
                budget -= self._prefill_chunk(slot, running)

    def _prefill_chunk(self, slot: int, running: _Running) -> int:
        start, size, padded = next(running.todo)
        prompt = running.generation.prompt
        tokens = np.zeros(padded, np.int32)
        tokens[:size] = prompt[start : start + size]
        with self._measured() as charge:
            sampled = self._call_prefill(slot, tokens, start, size)
            charge[running.generation.id] = size
        self._counters.prefill_tokens += size
        if start + size == len(prompt):
            running.is_prefilled = True
            self._deliver(slot, sampled, 0, len(prompt))
        return padded

    def _call_prefill(self, slot: int, tokens: np.ndarray, start: int, size: int) -> Sampled:
        """One chunk on the device; the sampled token comes back as a row of one."""
        row = slice(slot, slot + 1)
        sampled, self._cache = prefill(
            self.model.config, self._num_ids, self._params, self._cache, np.int32(slot), tokens, np.int32(start),
            np.int32(size), self._slots.sampling(row), self._slots.wants_top[slot],
        )  # fmt: skip
        return jax.tree.map(lambda x: np.asarray(x)[:, None], sampled)

    def _decode(self) -> None:
        """One dispatch: as many steps for all decoding slots as fit into `DISPATCH_S`."""
        if not self._slots.remaining.any():
            return
        c = self._counters
        num_steps = int(np.clip(DISPATCH_S / c.step_s, 1, MAX_STEPS))
        began = time.perf_counter()
        with self._measured() as charge:
            sampled = jax.tree.map(np.asarray, self._call_decode(num_steps))
            made = (sampled.token >= 0).sum(axis=1)
            charge.update({running.generation.id: int(made[slot]) for slot, running in c.running.items()})
        c.step_s += 0.2 * ((time.perf_counter() - began) / int(made.max()) - c.step_s)
        c.decode_steps += int(made.max())
        c.decode_tokens += int(made.sum())
        c.largest_batch = max(c.largest_batch, int((made > 0).sum()))
        for slot in np.flatnonzero(made):
            self._deliver(int(slot), sampled, int(slot), int(self._slots.position[slot]) + 1)

    def _call_decode(self, num_steps: int) -> Sampled:
        model, rows = self.model.config, self._slots.rows()
        sampled, self._cache = decode(model, self._num_ids, self._params, self._cache, rows, np.int32(num_steps))
        return sampled

    def _deliver(self, slot: int, sampled: Sampled, row: int, position: int) -> None:
        """Hands a row's new tokens, the first of them at `position`, to its request, which may end with one of them."""
        running = self._counters.running[slot]
        assembler = running.assembler
        num_top = running.generation.params.top_logprobs
        for offset, token in enumerate(_tokens(sampled, row, num_top)):
            assembler.push(token)
            self._slots.advance(slot, token.id, position + offset, assembler.remaining)
            if assembler.finish_reason is not None:
                break
        if assembler.finish_reason is not None:
            self._release(slot)
        if (event := assembler.take()) is not None:
            running.generation.put(event)

    @contextmanager
    def _measured(self) -> Iterator[dict[str, int]]:
        """Holds the device and charges the CPU time of all threads to the requests that the body names."""
        tokens: dict[str, int] = {}
        with DEVICE:
            began = time.process_time()
            yield tokens
            spent = time.process_time() - began
        if self._on_step is not None:
            self._on_step(spent, {request: count for request, count in tokens.items() if count})

    def _warm_up(self) -> None:
        """Compiles each shape by calls that write nothing."""
        for padded in BUCKETS:
            self._call_prefill(0, np.zeros(padded, np.int32), 0, 0)
        jax.block_until_ready(self._call_decode(0))


def _tokens(sampled: Sampled, row: int, num_top: int) -> Iterator[Token]:
    for step, token in enumerate(sampled.token[row]):
        if token < 0:
            return
        ids, logprobs = sampled.top_ids[row, step, :num_top], sampled.top_logprobs[row, step, :num_top]
        top = tuple((i, p) for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True) if p > -np.inf)
        yield Token(int(token), float(sampled.logprob[row, step]), top)
