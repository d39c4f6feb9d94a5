"""The scheduler alone, in pure Python: what holds after any sequence of events, and who goes first."""

import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lifecycle.inference.chunks import BUCKETS, Chunk, prompt_chunks
from lifecycle.inference.pages import NO_PAGE, PagePlan
from lifecycle.inference.requests import ClosedError, QueueFullError
from lifecycle.inference.scheduler import MAX_PASSED, MAX_STEPS, PREFILL_TOKENS, Scheduler


@dataclass(eq=False)
class Ask:
    """A request: its chunks as they were taken, and how often it has left."""

    length: int
    tokens: int  # it decodes so many
    is_cancelled: bool = False
    priority: int = 0
    may_share: bool = True
    letter: int = 0  # of which its prompt consists
    cache_key: bytes = b""
    has_twins: bool = False
    chunks: list[Chunk] = field(default_factory=list)  # since it has its slot
    made: int = 0  # tokens, since it has its slot
    left: int = 0

    @property
    def prompt(self) -> list[int]:
        return [self.letter] * self.length

    @property
    def max_tokens(self) -> int:
        return self.tokens

    @property
    def twin_key(self) -> bytes | None:
        return bytes([self.letter, *self.length.to_bytes(2)]) if self.has_twins else None


PAGE, CHUNK, LENGTH = 64, BUCKETS[-1], 1024


def plan(num_slots: int, num_pages: int | None = None) -> PagePlan:
    """Pages for contexts of `LENGTH`, and for windows of 100."""
    windows = {"full": None, "window": 100}
    full = num_slots * LENGTH // PAGE if num_pages is None else num_pages
    return PagePlan(PAGE, BUCKETS, {"full": full, "window": num_slots * (-(-(99 + CHUNK) // PAGE) + 1)}, windows)


def scheduler_of(num_slots: int, max_queue: int, num_groups: int = 1, **options: Any) -> Scheduler[Ask]:
    return Scheduler[Ask](num_slots, max_queue, plan(num_slots // num_groups), num_groups, **options)


class Turns(RuleBasedStateMachine):
    """Requests come, are cancelled, and turns pass, in any order; then the scheduler is closed and runs dry."""

    @initialize(
        groups=st.sampled_from((1, 2, 3)),
        per_group=st.integers(1, 3),
        max_queue=st.integers(0, 4),
        spare_pages=st.integers(0, 40),
        is_offline=st.booleans(),
    )
    def start(self, groups: int, per_group: int, max_queue: int, spare_pages: int, is_offline: bool) -> None:
        """Pages for one context, and some more: fewer than the slots could fill."""
        self.groups, self.per_group, self.num_slots = groups, per_group, groups * per_group
        pages = plan(per_group, LENGTH // PAGE + spare_pages)
        dispatch_s = math.inf if is_offline else 1.0  # which is as many steps
        self.scheduler = Scheduler[Ask](self.num_slots, max_queue, pages, groups, dispatch_s=dispatch_s)
        self.accepted: list[Ask] = []
        self.held: dict[int, Ask] = {}
        self.is_closed = False

    @rule(
        length=st.integers(1, 900),
        tokens=st.integers(1, 120),
        priority=st.sampled_from((0, 0, 0, -1, 1)),
        letter=st.integers(0, 2),
        may_share=st.booleans(),
        has_twins=st.booleans(),
    )
    def accept(self, length: int, tokens: int, priority: int, letter: int, may_share: bool, has_twins: bool) -> None:
        """One that has twins has one of few lengths, and shares."""
        length, may_share = (length // 300 * 256 + 44, True) if has_twins else (length, may_share)
        ask = Ask(length, tokens, priority=priority, letter=letter, may_share=may_share, has_twins=has_twins)
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
        running = [ask for ask in self.held.values() if not ask.is_cancelled]
        waiting = [ask for ask in self.accepted if not ask.left and not ask.is_cancelled]
        first = min(running or waiting, key=lambda ask: (ask.priority, self.accepted.index(ask)), default=None)
        before = None if first is None else (len(first.chunks), first.made, first in self.held.values())
        self._remove_cancelled()
        self._admit()
        self._prefill()
        self._decode()
        if first is not None:  # no starvation: the first of the running ones always advances
            assert before != (len(first.chunks), first.made, first in self.held.values()) or first.left

    def _remove_cancelled(self) -> None:
        removed, freed = self.scheduler.remove_cancelled()
        for ask in removed:
            assert ask.is_cancelled
            ask.left += 1
        for slot in freed:
            assert self.held.pop(slot) in removed

    def _admit(self) -> None:
        for slot, ask, num_cached in self.scheduler.admit():
            assert slot not in self.held and num_cached % CHUNK == 0 and num_cached < ask.length
            assert ask.may_share or not num_cached
            self.held[slot] = ask
            ask.chunks, ask.made = [], 0
            self.cached = {**getattr(self, "cached", {}), slot: num_cached}

    def _prefill(self) -> None:
        padded = [0] * self.groups
        for chunks in self.scheduler.take_prefills():
            groups = [chunk.slot // self.per_group for chunk in chunks]
            assert len(set(groups)) == len(groups)
            assert len({chunk.padded for chunk in chunks}) == 1
            for chunk, group in zip(chunks, groups, strict=True):
                self.scheduler.place(chunk)
                self._see(chunk.slot, chunk.start, chunk.end)
                assert chunk.is_first == (not self.held[chunk.slot].chunks)
                if chunk.is_first:  # more may be cached by now
                    assert self.cached[chunk.slot] <= chunk.start < self.held[chunk.slot].length
                    self.cached[chunk.slot] = chunk.start
                self.held[chunk.slot].chunks.append(chunk)
                padded[group] += chunk.padded
            for chunk in chunks:
                for fork in self.scheduler.forks(chunk):
                    self._copy(*fork)
                if chunk.end == (ask := self.held[chunk.slot]).length and ask.tokens % 11 == 0:
                    assert self.scheduler.release(chunk.slot, has_bad_pages=True) is self.held.pop(chunk.slot)
                    ask.left += 1
        assert max(padded) < PREFILL_TOKENS + BUCKETS[-1]

    def _copy(self, chunk: Chunk, slot: int) -> None:
        """It had nothing of its own, and has the prompt now: shared whole chunks, and its own copy of the last."""
        ask = self.held[slot]
        assert not ask.chunks and ask.twin_key == self.held[chunk.slot].twin_key is not None
        assert chunk.end == ask.length and slot // self.per_group == chunk.slot // self.per_group
        self.cached[slot] = chunk.start
        ask.chunks.append(replace(chunk, slot=slot, is_first=True))
        self._see(slot, chunk.start, chunk.end)

    def _see(self, slot: int, start: int, end: int) -> None:
        """The slot has the pages that the tokens from `start` to `end` see, each once, and writes to none of
        others."""
        for kind, window in (("full", None), ("window", 100)):
            table = self.scheduler.tables(slot)[kind]
            first = 0 if window is None else max(0, start - window + 1) // PAGE
            seen = table[first : -(-end // PAGE)]
            assert len(seen) == -(-end // PAGE) - first and min(seen) >= 0 and len(set(seen)) == len(seen)
            own = set(table[start // PAGE : -(-end // PAGE)])
            for other in self.held:
                if other != slot and other // self.per_group == slot // self.per_group:
                    assert not own & {*self.scheduler.tables(other)[kind]}

    def _decode(self) -> None:
        steps = self.scheduler.decode_steps()
        assert (steps > 0) == bool(self.scheduler.decoding)
        for slot in self.scheduler.make_room(steps):
            ask = self.held.pop(slot)
            assert not any(  # those that come before it keep theirs
                (other.priority, self.accepted.index(other)) > (ask.priority, self.accepted.index(ask))
                for held, other in self.held.items()
                if held // self.per_group == slot // self.per_group
            )
        for slot, ask in self.scheduler.decoding.items():
            assert sum(chunk.size for chunk in ask.chunks) + self.cached[slot] == ask.length
            made = min(steps, ask.tokens - ask.made)
            self._see(slot, ask.length + ask.made, ask.length + ask.made + made)
            ask.made += made
            self.scheduler.advance(slot, made)
            if ask.made == ask.tokens:
                assert self.scheduler.release(slot, has_bad_pages=ask.tokens % 7 == 0) is self.held.pop(slot) is ask
                ask.left += 1

    @invariant()
    def every_slot_is_free_or_held(self) -> None:
        assert self.scheduler.num_free + self.scheduler.num_active == self.num_slots
        assert self.scheduler.num_active == len(self.held)
        assert all(self.scheduler.request(slot) is ask for slot, ask in self.held.items())

    @invariant()
    def every_page_is_free_cached_or_used(self) -> None:
        for group, pages in enumerate(self.scheduler.pages):
            held = [slot for slot in self.held if slot // self.per_group == group]
            for kind, pool in pages.pools.items():
                assert pool.num_free + pool.num_cached + pool.num_used == pool.num_pages
                used = {page for slot in held for page in self.scheduler.tables(slot)[kind]} - {NO_PAGE}
                assert pool.num_used == len(used)

    @invariant()
    def a_prompts_chunks_are_those_of_its_length(self) -> None:
        for slot, ask in self.held.items():
            cuts = list(prompt_chunks(ask.length, BUCKETS, self.cached[slot]))
            assert [(chunk.start, chunk.size, chunk.padded) for chunk in ask.chunks] == cuts[: len(ask.chunks)]
            assert all(start % CHUNK == 0 for start, _, _ in cuts)

    def teardown(self) -> None:
        """Whatever happened, every request leaves exactly once."""
        if not hasattr(self, "scheduler"):
            return
        self.close()
        for _ in range(100 * len(self.accepted)):
            self.turn()
        assert self.scheduler.is_done
        assert [ask.left for ask in self.accepted] == [1] * len(self.accepted)
        assert all(pool.num_used == 0 for pages in self.scheduler.pages for pool in pages.pools.values())


TestTurns = Turns.TestCase


@pytest.mark.parametrize("length", [1, 16, 17, 64, 65, 256, 257, 1000])
def test_chunks_cover_a_prompt_in_few_shapes(length: int) -> None:
    cuts = list(prompt_chunks(length, BUCKETS))
    assert [start for start, _, _ in cuts] == [sum(size for _, size, _ in cuts[:i]) for i in range(len(cuts))]
    assert sum(size for _, size, _ in cuts) == length
    assert all(size <= padded and padded in BUCKETS for _, size, padded in cuts)


def test_pages_with_bad_contents_are_not_shared() -> None:
    scheduler = scheduler_of(num_slots=1, max_queue=1)
    cached: list[int] = []
    for has_bad_pages in (True, False, False):
        scheduler.accept(Ask(CHUNK + 1, 1))
        ((slot, _, num_cached),) = scheduler.admit()
        cached.append(num_cached)
        for chunks in scheduler.take_prefills():
            scheduler.place(*chunks)
        scheduler.release(slot, has_bad_pages)
    assert cached == [0, 0, CHUNK]


def test_groups_fill_evenly_and_prefill_side_by_side() -> None:
    scheduler = scheduler_of(num_slots=4, max_queue=4, num_groups=2)
    for letter, length in enumerate((10, 12, 300, 60)):
        scheduler.accept(Ask(length, 1, letter=letter))
    assert [admission.slot for admission in scheduler.admit()] == [0, 2, 1, 3]
    dispatches = [[(chunk.slot, chunk.size) for chunk in chunks] for chunks in scheduler.take_prefills()]
    assert dispatches == [[(0, 10), (2, 12)], [(1, 256)], [(1, 44), (3, 60)]]


def prefilled(scheduler: Scheduler[Ask]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """A turn's chunks, as slots and first positions, and its forks, as the slots from which and to which."""
    chunks, forks = [], []
    for chunk in (chunk for dispatch in scheduler.take_prefills() for chunk in dispatch):
        scheduler.place(chunk)
        chunks.append((chunk.slot, chunk.start))
        forks += [(chunk.slot, fork.slot) for fork in scheduler.forks(chunk)]
    return chunks, forks


def test_equal_prompts_are_computed_once_in_each_group() -> None:
    """One that ended its first chunk before its twins came goes on alone; they wait for its last one."""
    scheduler = scheduler_of(num_slots=8, max_queue=8, num_groups=2)
    for letter in (0, 0, 1, 1, 0):
        scheduler.accept(Ask(300, 5, letter=letter, has_twins=True))
    assert [admission.slot for admission in scheduler.admit()] == [0, 1, 4, 5, 2]
    assert prefilled(scheduler) == ([(0, 0), (4, 0), (0, 256), (4, 256)], [(0, 1), (0, 2), (4, 5)])
    assert scheduler.decoding.keys() == {0, 1, 2, 4, 5}
    for group, letter in ((0, 0), (1, 1)):
        tables = [scheduler.tables(4 * group + slot) for slot in range(2)]
        assert tables[0]["full"][:4] == tables[1]["full"][:4]  # what comes before the last chunk they share
        assert not {*tables[0]["full"][4:]} & {*tables[1]["full"][4:]}
        scheduler.accept(Ask(300, 5, letter=letter, has_twins=True))
    scheduler.accept(Ask(300, 5, letter=1))  # has no twins, but what is cached of it
    assert [(admission.slot, admission.num_cached) for admission in scheduler.admit()] == [(3, 256), (6, 256), (7, 256)]
    assert prefilled(scheduler) == ([(3, 256), (6, 256), (7, 256)], [])


def test_pages_that_lose_their_names_meanwhile_are_kept_by_who_has_them() -> None:
    """One fails whose prompt begins as those of two that wait, in so few pages that none could begin again."""
    pages = PagePlan(PAGE, BUCKETS, {"full": 30}, {"full": None})
    scheduler = Scheduler[Ask](3, 8, pages)
    scheduler.accept(Ask(1025, 1))
    scheduler.admit()
    while not scheduler.decoding:
        prefilled(scheduler)
    scheduler.release(0)
    for length, has_twins in ((1124, False), (1324, True), (1324, True)):
        scheduler.accept(Ask(length, 1, has_twins=has_twins))
    assert [admission.num_cached for admission in scheduler.admit()] == [1024] * 3
    (failed,), *others = scheduler.take_prefills()
    scheduler.place(failed)
    scheduler.release(failed.slot, has_bad_pages=True)
    for (chunk,) in others:
        scheduler.place(chunk)
        assert not scheduler.forks(chunk)  # they have other copies of the pages before it
    assert prefilled(scheduler) == ([(2, 1024), (2, 1280)], [])


def test_who_follows_a_cancelled_one_goes_on_from_what_it_had() -> None:
    scheduler = scheduler_of(num_slots=2, max_queue=2)
    asks = [Ask(900, 1, has_twins=True) for _ in range(2)]
    for ask in asks:
        scheduler.accept(ask)
    scheduler.admit()
    assert prefilled(scheduler)[0] == [(0, 0), (0, 256)]
    asks[0].is_cancelled = True
    scheduler.remove_cancelled()
    assert prefilled(scheduler)[0] == [(1, 512), (1, 768)]


def test_without_forks_every_prompt_is_computed() -> None:
    scheduler = scheduler_of(num_slots=2, max_queue=2, may_fork=False)
    for _ in range(2):
        scheduler.accept(Ask(20, 5, has_twins=True))
    scheduler.admit()
    assert prefilled(scheduler) == ([(0, 0), (1, 0)], [])


@pytest.mark.parametrize(("options", "num"), [({}, 8), ({"dispatch_s": math.inf}, 12)])
def test_larger_groups_fill_faster_where_nobody_reads_along(options: dict[str, Any], num: int) -> None:
    scheduler = scheduler_of(num_slots=12, max_queue=12, **options)
    for letter in range(12):
        scheduler.accept(Ask(40, 5, letter=letter, has_twins=True))
    scheduler.admit()
    assert len(prefilled(scheduler)[0]) == num


def test_steps_aim_at_a_dispatchs_time() -> None:
    """And at twice that while all slots decode and nobody waits."""
    scheduler, full, offline = scheduler_of(2, 1), scheduler_of(1, 1), scheduler_of(1, 1, dispatch_s=math.inf)
    for each in (scheduler, full, offline):
        each.accept(Ask(1, 1))
        each.admit()
        assert each.decode_steps() == 0
        each.take_prefills()
    assert [each.decode_steps() for each in (scheduler, full, offline)] == [2, 4, MAX_STEPS]
    waited = scheduler_of(1, 1)
    waited.accept(Ask(1, 1))
    waited.admit()
    waited.take_prefills()
    waited.accept(Ask(1, 1))
    assert waited.decode_steps() == 2
    for step_s, *expected in (
        (1.0, 1, 1, 1), (1e-5, MAX_STEPS, MAX_STEPS, MAX_STEPS), (0.016, 3, 6, 1), (0.0067, 7, 15, 1),
        (0.0033, 15, MAX_STEPS, 3),
    ):  # fmt: skip
        for _ in range(100):
            scheduler.measured(step_s)
            full.measured(step_s)
        found = scheduler.decode_steps(), full.decode_steps(), full.decode_steps(is_constrained=True)
        assert [*found] == expected


def test_the_requests_are_those_that_have_not_left() -> None:
    scheduler = scheduler_of(1, 2)
    asks = [Ask(1, 1) for _ in range(3)]
    for ask in asks:
        scheduler.accept(ask)
    (admission,) = scheduler.admit()
    assert sorted(map(id, scheduler.requests)) == sorted(map(id, asks))
    scheduler.release(admission.slot)
    assert scheduler.requests == [ask for ask in asks if ask is not admission.request]


def run(scheduler: Scheduler[Ask], steps: int = MAX_STEPS) -> None:
    """A turn in which every decoding request makes `steps` tokens."""
    scheduler.admit()
    for chunks in scheduler.take_prefills():
        for chunk in chunks:
            scheduler.place(chunk)
    scheduler.make_room(steps)
    for slot in scheduler.decoding:
        scheduler.advance(slot, steps)


def test_a_prompt_begins_where_another_that_is_equal_so_far_was_cut() -> None:
    """Also after that has left; but at least one token is computed, and who asks for all computes all."""
    scheduler = scheduler_of(2, 8)
    scheduler.accept(Ask(700, 9))
    run(scheduler)
    run(scheduler)
    scheduler.release(0)
    lengths = {512: 256, 513: 512, 255: 0, 256: 0, 1000: 512}
    for length, cached in lengths.items():
        for may_share in (True, False):
            scheduler.accept(Ask(length, 1, may_share=may_share))
            (admission,) = scheduler.admit()
            assert admission.num_cached == (cached if may_share else 0)
            scheduler.release(admission.slot)
    scheduler.accept(Ask(700, 1, letter=1))
    assert scheduler.admit()[0].num_cached == 0


def test_the_youngest_gives_up_its_slot_where_pages_run_out_and_gets_it_back() -> None:
    scheduler = Scheduler[Ask](2, 2, plan(2, LENGTH // PAGE + 2))
    old, young = Ask(600, 400), Ask(400, 600, letter=1)
    for ask in (old, young):
        scheduler.accept(ask)
    for _ in range(3):
        run(scheduler)
    assert scheduler.decoding == {0: old, 1: young}
    while not (given_up := scheduler.make_room(MAX_STEPS)):
        for slot in scheduler.decoding:
            scheduler.advance(slot, MAX_STEPS)
    assert given_up == [1] and scheduler.num_waiting == 1
    assert not scheduler.admit()  # its tokens do not fit beside the other's
    scheduler.release(0)
    assert [(admission.request, admission.num_cached) for admission in scheduler.admit()] == [(young, 256)]


def test_a_lower_priority_goes_first_but_never_for_ever() -> None:
    scheduler = scheduler_of(1, MAX_PASSED + 2)
    patient = Ask(1, 1, priority=1)
    scheduler.accept(Ask(1, 1))
    scheduler.accept(patient)
    order: list[Ask] = []
    for _ in range(MAX_PASSED + 2):
        scheduler.accept(Ask(1, 1))
        (admission,) = scheduler.admit()
        order.append(scheduler.release(admission.slot))
    assert order.index(patient) == MAX_PASSED + 1


def test_a_request_that_is_cancelled_in_the_meantime_stays_until_the_next_turn() -> None:
    """Another thread cancels while the queue is looked through: it leaves once, now or then."""

    class Fickle(Ask):
        reads = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "is_cancelled":
                return super().__getattribute__(name)
            Fickle.reads += 1
            return Fickle.reads > 1

    scheduler, ask = scheduler_of(1, 2), Fickle(1, 1)
    scheduler.accept(ask)
    assert scheduler.remove_cancelled() == ([], []) and scheduler.num_waiting == 1
    assert scheduler.remove_cancelled() == ([ask], []) and scheduler.num_waiting == 0


def test_it_needs_no_jax() -> None:
    source = "import sys, lifecycle.inference.scheduler; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)
