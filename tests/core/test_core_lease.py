"""A run's folder has one owner: who it is is told, one that is gone is replaced, one that was replaced stops."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from lifecycle.core import lease as leases
from lifecycle.core.lease import CLOCK, LEASE, InUse, Lease, LeaseError, Owner, find_lease, is_owned_here, locked
from lifecycle.core.progress import Silent
from lifecycle.core.stopping import LOST_STATUS, failure_status
from lifecycle.core.store import Store, StoreError
from lifecycle.testing.notes import Notes
from lifecycle.testing.waiting import wait_until
from tests.gcs_server import Google

pytestmark = pytest.mark.xdist_group("s3")
SHORT_S = 0.6
HELD_S = 9.0  # outlasts what a busy machine holds up; renewed every 1.5 s


def memory() -> Store:
    return Store("mem://run", MemoryStore())


@contextmanager
def taking_sigterm() -> Generator[list[int]]:
    """What a process gets that lost its lease."""
    got: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        got.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield got
    finally:
        signal.signal(signal.SIGTERM, before)


def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_kernel", lambda: "another")


def test_a_second_owner_is_refused_with_the_first_ones_name(bucket: str) -> None:
    store, told = Store(f"{bucket}/owned"), Notes()
    first, second = Lease(store, Silent(), HELD_S), Lease(store, told, HELD_S)
    with first.holding():
        refused = pytest.raises(LeaseError, match=rf"owned by process {os.getpid()} on .*, since 20.*; wait for it")
        with refused, second.holding():
            raise AssertionError("two owners")
        first.require()
    assert any("seeing whether it is alive" in note for note in told.notes)
    with second.holding():  # given up in order: free at once
        assert json.loads(store.read(LEASE))["owner"]["process"] == second.owner.process
    assert set(store.list()) <= {LEASE, CLOCK}  # nothing grows


def test_an_expired_lease_is_taken_over_and_its_owner_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = Store(f"{bucket}/expired"), Notes()
    gone = Lease(store, Silent(), SHORT_S)
    gone._take()  # and never renewed
    monkeypatch.setattr(leases, "_kernel", lambda: "another")
    with Lease(store, told, SHORT_S).holding():
        pass
    assert any(f"taken over from {gone.owner}" in note for note in told.notes)


def test_an_expired_lease_is_left_to_its_owner_by_who_takes_none_over(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory()
    owner = Lease(store, Silent(), SHORT_S)
    owner._take()
    monkeypatch.setattr(leases, "_kernel", lambda: "another")
    monkeypatch.setattr(Lease, "_age", lambda lease, stored: SHORT_S * 2)  # the owner is cut off from the store
    refused = pytest.raises(
        InUse, match=rf"owned by {re.escape(str(owner.owner))}, which has not renewed its lease; if it has ended"
    )
    with refused, Lease(store, Silent(), SHORT_S, takes_over=False).holding():
        raise AssertionError("two owners")
    owner._renew()
    owner.require()
    owner._release()
    with Lease(store, Silent(), SHORT_S, takes_over=False).holding():  # given up
        pass


def test_an_owner_whose_lease_nobody_has_now_says_to_start_again() -> None:
    store = memory()
    lost = Lease(store, Silent(), SHORT_S)
    lost._take()
    store.write(LEASE, json.dumps({"owner": None}).encode())
    lost._renew()
    with pytest.raises(LeaseError, match="another took over and gave up again; start the run again") as raised:
        lost.require()
    assert failure_status(raised.value) == LOST_STATUS


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"null", b'{"owner": {"kernel": "k"}}', b'{"owner": {"kernel": "k", "more": 1}}']
)
def test_what_is_no_lease_is_named(content: bytes) -> None:
    store = memory()
    store.write(LEASE, content)
    for ask in (is_owned_here, find_lease):
        with pytest.raises(StoreError, match=r"/lease.json: not a lease; if no job uses this run, delete it"):
            ask(store)


def test_a_dead_process_of_this_machine_is_not_waited_for() -> None:
    store, told = memory(), Notes()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = Lease(store, Silent())
    gone.owner = Owner(gone.owner.host, ended.pid, "SLURM_JOB_ID=7", gone.owner.since, "its", gone.owner.kernel)
    gone._take()
    started = time.monotonic()
    with Lease(store, told).holding():
        assert time.monotonic() - started < 5  # a lease lasts for 90 s
    assert [note for note in told.notes if f"process {ended.pid}" in note and "SLURM_JOB_ID=7" in note]


def test_an_owner_whose_lease_was_taken_stops_and_writes_no_more() -> None:
    store = memory()
    lost, stops = (
        Lease(store, Silent(), SHORT_S),
        pytest.raises(LeaseError, match=r"lost its lease, now owned by .* 7 "),
    )
    with taking_sigterm() as got, stops, lost.holding():
        other = Owner("other", 7, "", "2026-01-01", "another", "another")
        store.write(LEASE, json.dumps({"owner": vars(other), "duration_s": 9}).encode())
        wait_until(lambda: bool(got))
        with pytest.raises(LeaseError):
            lost.require()
        raise InterruptedError("stopped")  # as SIGTERM's handler does
    assert got[0] == signal.SIGTERM
    assert json.loads(store.read(LEASE))["owner"]["process"] == "another"  # not given up in its place


def test_a_write_whose_answer_was_lost_is_recognised_as_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library repeats it, and finds the object changed: by itself."""
    store = memory()
    lease = Lease(store, Silent())
    lease._take()
    store.replace(LEASE, lease._content(), lease._stored)  # arrived; what it returned did not
    lease._renew()
    lease.require()
    lease._renew()
    assert not lease._lost


def test_a_lease_whose_answer_was_lost_is_taken_at_once(gs: str, google: Google) -> None:
    """The store has carried out the write, the library repeats it, and it is refused: its own is there."""
    store = Store(f"{gs}/lost answers")
    for _ in range(2):  # made, then taken over
        google.lost[:] = [HTTPStatus.SERVICE_UNAVAILABLE]
        started = time.monotonic()
        with Lease(store, Silent()).holding():
            assert not google.lost and time.monotonic() - started < 60  # expires after 90 s
        assert json.loads(store.read(LEASE))["owner"] is None


def test_a_suspended_owner_asks_the_store_before_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory()
    lease = Lease(store, Silent(), 50)
    lease._take()
    on_another_machine(monkeypatch)
    monkeypatch.setattr(Lease, "_age", lambda *_: 51.0)
    with Lease(store, Silent(), 50).holding():
        clock = time.clock_gettime
        monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + 40 * (which == leases.TICKING))
        with pytest.raises(LeaseError, match="lost its lease"):
            lease.require()


def away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr(store, "replace", fail)


def test_who_is_stopped_while_the_store_is_away_ends_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory()
    lease = Lease(store, told := Notes(), 50)
    with pytest.raises(InterruptedError), lease.holding():
        away(store, monkeypatch)
        lease._renewed -= 40
        raise InterruptedError("stopped")  # as SIGTERM's handler does
    assert told.notes == ["the lease is left to expire: no answer"]


def test_a_lease_that_could_not_be_renewed_asks_for_a_new_start(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory()
    lost = pytest.raises(LeaseError, match="no answer; for 1 s the lease could not")
    with taking_sigterm() as got, lost as found, Lease(store, Silent(), SHORT_S).holding():
        away(store, monkeypatch)
        wait_until(lambda: bool(got))
    assert found.value.is_lost and failure_status(found.value) == LOST_STATUS


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_of_any_number_of_contenders_one_owns(count: int, order: object) -> None:
    """Each takes an expired lease as far as it can, in any order of their reads and writes."""
    store = memory()
    store.write(LEASE, json.dumps({"owner": None}).encode())
    contenders = [Lease(store, Silent()) for _ in range(count)]
    seen = [(lease, find_lease(store)) for lease in contenders]
    order.shuffle(seen)  # type: ignore[attr-defined]
    won = [lease for lease, found in seen if found is not None and lease._take_over(found)]
    assert len(won) == 1 and json.loads(store.read(LEASE))["owner"]["process"] == won[0].owner.process


def test_racing_threads_have_one_owner_at_a_time(bucket: str) -> None:
    store, inside, most = Store(f"{bucket}/race"), [0], [0]
    refused: list[LeaseError] = []

    def own() -> None:
        try:
            with Lease(store, Silent(), HELD_S).holding():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.3)
                inside[0] -= 1
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=own) for _ in range(4)]
    with taking_sigterm():  # of a lease that a very busy machine has let expire
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] and len(refused) < 4


def test_a_local_folder_in_use_names_its_user(tmp_path: Path) -> None:
    with locked(tmp_path):
        named = rf"in use by process {os.getpid()} on .*, since 20.*; wait for it, or set name=NAME"
        with pytest.raises(LeaseError, match=named), locked(tmp_path):
            raise AssertionError("two owners")
    with locked(tmp_path):
        pass
