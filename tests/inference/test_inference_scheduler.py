"""The scheduler alone, in pure Python: what holds after any sequence of events, and who goes first."""

import math
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lifecycle.inference.scheduler import (
    BUCKETS,
    MAX_STEPS,
    PREFILL_TOKENS,
    Chunk,
    ClosedError,
    QueueFullError,
    Scheduler,
    prompt_chunks,
)


@dataclass(eq=False)
class Ask:
    """A request: its chunks as they were taken, and how often it has left."""

    length: int
    tokens: int  # it decodes so many turns
    is_cancelled: bool = False
    chunks: list[Chunk] = field(default_factory=list)
    left: int = 0

    @property
    def prompt(self) -> list[int]:
        return [0] * self.length


class Turns(RuleBasedStateMachine):
    """Requests come, are cancelled, and turns pass, in any order; then the scheduler is closed and runs dry."""

    @initialize(groups=st.sampled_from((1, 2, 3)), per_group=st.integers(1, 3), max_queue=st.integers(0, 4))
    def start(self, groups: int, per_group: int, max_queue: int) -> None:
        self.groups, self.per_group, self.num_slots = groups, per_group, groups * per_group
        self.scheduler = Scheduler[Ask](self.num_slots, max_queue, groups)
        self.accepted: list[Ask] = []
        self.admitted: list[Ask] = []
        self.held: dict[int, Ask] = {}
        self.is_closed = False

    @rule(length=st.integers(1, 900), tokens=st.integers(1, 4))
    def accept(self, length: int, tokens: int) -> None:
        ask = Ask(length, tokens)
        room = self.scheduler.max_queue + self.scheduler.num_free - self.scheduler.num_waiting
        if self.is_closed:
            with pytest.raises(ClosedError):
                self.scheduler.accept(ask)
        elif room <= 0:
            with pytest.raises(QueueFullError):
                self.scheduler.accept(ask)
        else:
            self.scheduler.accept(ask)
            self.accepted.append(ask)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.accepted)).is_cancelled = True

    @rule()
    def close(self) -> None:
        self.scheduler.close()
        self.is_closed = True

    @rule()
    def turn(self) -> None:
        oldest = next((ask for ask in self.accepted if not ask.left and not ask.is_cancelled), None)
        before = None if oldest is None else (len(oldest.chunks), oldest.tokens, oldest in self.admitted)
        self._remove_cancelled()
        self._admit()
        self._prefill()
        self._decode()
        if oldest is not None:  # no starvation: the oldest request always advances
            assert before != (len(oldest.chunks), oldest.tokens, oldest in self.admitted)

    def _remove_cancelled(self) -> None:
        removed, freed = self.scheduler.remove_cancelled()
        for ask in removed:
            assert ask.is_cancelled
            ask.left += 1
        for slot in freed:
            assert self.held.pop(slot) in removed

    def _admit(self) -> None:
        for slot, ask in self.scheduler.admit():
            assert slot not in self.held
            self.held[slot] = ask
            self.admitted.append(ask)
        assert self.scheduler.num_free == 0 or self.scheduler.num_waiting == 0

    def _prefill(self) -> None:
        padded = [0] * self.groups
        for chunks in self.scheduler.take_prefills():
            groups = [chunk.slot // self.per_group for chunk in chunks]
            assert len(set(groups)) == len(groups)
            assert len({chunk.padded for chunk in chunks}) == 1
            for chunk, group in zip(chunks, groups, strict=True):
                self.held[chunk.slot].chunks.append(chunk)
                padded[group] += chunk.padded
        assert max(padded) < PREFILL_TOKENS + BUCKETS[-1]

    def _decode(self) -> None:
        decoding = self.scheduler.decoding
        assert (self.scheduler.decode_steps() > 0) == bool(decoding)
        for slot, ask in decoding.items():
            assert sum(chunk.size for chunk in ask.chunks) == ask.length
            ask.tokens -= 1
            if ask.tokens == 0:
                assert self.scheduler.release(slot) is self.held.pop(slot) is ask
                ask.left += 1

    @invariant()
    def every_slot_is_free_or_held(self) -> None:
        assert self.scheduler.num_free + self.scheduler.num_active == self.num_slots
        assert self.scheduler.num_active == len(self.held)
        assert all(self.scheduler.request(slot) is ask for slot, ask in self.held.items())

    @invariant()
    def requests_are_admitted_in_their_order(self) -> None:
        assert self.admitted == [ask for ask in self.accepted if ask in self.admitted]

    @invariant()
    def a_prompts_chunks_are_those_of_its_length(self) -> None:
        for slot, ask in self.held.items():
            cuts = [Chunk(slot, *cut) for cut in prompt_chunks(ask.length)]
            assert ask.chunks == cuts[: len(ask.chunks)]

    def teardown(self) -> None:
        """Whatever happened, every request leaves exactly once."""
        if not hasattr(self, "scheduler"):
            return
        self.close()
        for _ in range(10 * len(self.accepted)):
            self.turn()
        assert self.scheduler.is_done
        assert [ask.left for ask in self.accepted] == [1] * len(self.accepted)


TestTurns = Turns.TestCase


@pytest.mark.parametrize("length", [1, 16, 17, 64, 65, 256, 257, 1000])
def test_chunks_cover_a_prompt_in_few_shapes(length: int) -> None:
    cuts = list(prompt_chunks(length))
    assert [start for start, _, _ in cuts] == [sum(size for _, size, _ in cuts[:i]) for i in range(len(cuts))]
    assert sum(size for _, size, _ in cuts) == length
    assert all(size <= padded and padded in BUCKETS for _, size, padded in cuts)


def test_groups_fill_evenly_and_prefill_side_by_side() -> None:
    scheduler = Scheduler[Ask](num_slots=4, max_queue=4, num_groups=2)
    for length in (10, 12, 300, 60):
        scheduler.accept(Ask(length, 1))
    assert [slot for slot, _ in scheduler.admit()] == [0, 2, 1, 3]
    dispatches = [[(chunk.slot, chunk.size) for chunk in chunks] for chunks in scheduler.take_prefills()]
    assert dispatches == [[(0, 10), (2, 12)], [(1, 256)], [(1, 44), (3, 60)]]


def test_steps_aim_at_a_dispatchs_time() -> None:
    scheduler, offline = Scheduler[Ask](1, 1), Scheduler[Ask](1, 1, dispatch_s=math.inf)
    for each in (scheduler, offline):
        each.accept(Ask(1, 1))
        each.admit()
        assert each.decode_steps() == 0
        each.take_prefills()
    assert (scheduler.decode_steps(), offline.decode_steps()) == (2, MAX_STEPS)
    for step_s, expected in ((1.0, 1), (1e-5, MAX_STEPS), (0.01, 3)):
        for _ in range(100):
            scheduler.measured(step_s)
        assert scheduler.decode_steps() == expected


def test_abort_returns_every_request_that_has_not_left() -> None:
    scheduler = Scheduler[Ask](1, 2)
    asks = [Ask(1, 1) for _ in range(3)]
    for ask in asks:
        scheduler.accept(ask)
    scheduler.admit()
    assert sorted(map(id, scheduler.abort())) == sorted(map(id, asks))
    assert scheduler.is_done and scheduler.num_free == 1


def test_it_needs_no_jax() -> None:
    source = "import sys, lifecycle.inference.scheduler; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)
