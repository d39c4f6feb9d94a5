"""One owner of a run's folder: a lock where processes share a file system, a lease in object storage.

The lock is the kernel's and ends with its process. Object storage has none, so the owner writes `lease.json` and renews
it; one that has not been renewed for its duration has expired and is taken over. What must hold:

- two processes never both believe for longer than a renewal that they own a folder: each write is conditional on the
  object being the one last seen, and the store decides (Gray and Cheriton, "Leases", SOSP 1989);
- no clock of one machine is compared with another's: a lease's age is the difference of two times of the store's, its
  own and that of an object written now;
- an owner who lost its lease writes nothing more to the store (`require`), and is stopped.
"""

import fcntl
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from lifecycle.core.config import ConfigError
from lifecycle.core.periodic import repeated
from lifecycle.core.progress import Progress
from lifecycle.core.store import Changed, Missing, Store, StoredObject, StoreError

LEASE = "lease.json"
CLOCK = "lease.clock"  # written by a contender to learn the store's time
LOCK = ".lock"
DURATION_S = 90.0
RETRY_S = 20.0  # how long a request for a lease is repeated: shorter than its duration, so that its end is noticed
TICKING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux's monotonic clock stands still in a suspend
RENEWALS = 6  # in a lease's duration: a store that does not answer for a minute ends no run
JOB_IDS = ("SLURM_JOB_ID", "SKYPILOT_TASK_ID")


class LeaseError(ConfigError):
    """Another process owns the run's folder; the message names it. `is_lost` if it is not known to: this one could not
    renew its lease, so that a new start may help."""

    def __init__(self, message: str, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_lost = is_lost


class InUse(LeaseError):
    """Another process owned the folder when this one asked for it; `owner`: the folder, and who."""

    def __init__(self, owner: str, fix: str) -> None:
        super().__init__(f"{owner}; {fix}")
        self.owner = owner


@dataclass(frozen=True)
class Owner:
    """Who owns a folder. `process` is unique to this use of it; `kernel` is where the process id means something."""

    host: str
    pid: int
    job: str
    since: str
    process: str
    kernel: str

    @classmethod
    def me(cls) -> "Owner":
        """This process, from now on."""
        job = next((f"{name}={os.environ[name]}" for name in JOB_IDS if os.environ.get(name)), "")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(platform.node(), os.getpid(), job, since, uuid4().hex, _kernel())

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether the process is, or was, one of this machine."""
        return self.kernel == _kernel()

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended; unknown, and so False, on another machine."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@dataclass(frozen=True)
class Found:
    """A lease in a store: who owns the folder (None: it was given up), for how long without renewal, and the object."""

    owner: Owner | None
    duration_s: float
    stored: StoredObject


def find_lease(store: Store) -> Found | None:
    """The lease of a folder in a store; None if there is none. Raises `StoreError` for an object that is no lease."""
    try:
        content, stored = store.read_tagged(LEASE)
    except Missing:
        return None
    try:
        lease = json.loads(content)
        owner = None if lease["owner"] is None else Owner(**lease["owner"])
        return Found(owner, float(lease.get("duration_s", 0.0)), stored)
    except (ValueError, TypeError, KeyError):
        raise StoreError(f"{store.url}/{LEASE}: not a lease; if no job uses this run, delete it") from None


def is_owned_here(store: Store) -> bool:
    """Whether a process of this machine owns the folder in a store. Raises `StoreError`."""
    found = find_lease(store)
    return found is not None and found.owner is not None and found.owner.is_here and not found.owner.is_dead


@contextmanager
def locked(folder: Path, lock: str = LOCK, wait_s: float = 0.0) -> Generator[None]:
    """Owns a local folder, or what another lock in it stands for, while the block runs; raises `LeaseError`, with the
    owner's name, if another process does and goes on for `wait_s`."""
    with open(folder / lock, "a+", encoding="utf-8") as file:
        deadline = _now() + wait_s
        while not (is_ours := _try_lock(file)) and _now() < deadline:
            time.sleep(0.1)
        if not is_ours:
            file.seek(0)
            owner = f"{folder}: in use by {file.read().strip() or 'another process'}"
            raise InUse(owner, "wait for it, or set name=NAME to start another run")
        file.truncate(0)
        file.write(f"{Owner.me()}\n")
        file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lease:
    """The ownership of a store's folder, held while `holding` runs. An owner that is alive is waited for `wait_s`; one
    that may be, because it has not renewed its lease, keeps it unless this process `takes_over`."""

    def __init__(
        self, store: Store, progress: Progress, duration_s: float = DURATION_S, wait_s: float = 0.0, *,
        takes_over: bool = True,
    ) -> None:  # fmt: skip
        self._wait_s, self._takes_over = wait_s, takes_over
        self.owner = Owner.me()
        self._store, self._progress, self._duration_s = store, progress, duration_s
        self._stored: Any = None  # the version of the lease that this process wrote last
        self._renewed = 0.0
        self._lost: LeaseError | None = None
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def holding(self) -> Generator[None]:
        """Takes the lease, renews it in a thread, and gives it up at the end. Raises `LeaseError` if another process
        owns the folder, or has taken it over by the end."""
        self._take()
        try:
            with repeated(self._renew_or_stop, self._duration_s / RENEWALS, "lease"):
                yield
        finally:
            self._release()
            if self._lost:  # a process that lost its lease says so, however it was stopped
                raise self._lost from None

    def require(self) -> None:
        """Raises `LeaseError` unless this process still owns the folder; called before each write to the store."""
        if not self._lost and _now() - self._renewed > self._duration_s / 2:
            self._renew()  # this process, or its machine, was suspended
        if self._lost:
            raise self._lost

    def _take(self) -> None:
        seen: str | None = None
        deadline = _now() + self._wait_s
        while True:
            try:
                self._written(self._store.create(LEASE, self._content()))
                return
            except Changed:
                pass
            found = find_lease(self._store)
            if self._adopt(found):
                return
            if found is None:
                continue
            if self._is_free(found):
                if self._take_over(found):
                    return
                continue
            if seen is None:
                self._progress.note(f"{self._store.url}: owned by {found.owner}; seeing whether it is alive")
            elif seen != found.stored.tag and _now() >= deadline:
                fix = "try again later" if self._wait_s else "wait for it, or set name=NAME to start another"
                raise InUse(f"{self._store.url}: owned by {found.owner}", fix)
            seen = found.stored.tag
            time.sleep(self._duration_s / RENEWALS / 4)

    def _is_free(self, found: Found) -> bool:
        """Whether the lease may be taken; raises `InUse` for one that has expired, if this process takes none over."""
        if found.owner is None or found.owner.is_dead:
            return True
        has_expired = self._age(found.stored) > found.duration_s
        if has_expired and not self._takes_over:
            owner = f"{self._store.url}: owned by {found.owner}, which has not renewed its lease"
            raise InUse(owner, "if it has ended, `lifecycle run` takes the run over")
        return has_expired

    def _take_over(self, found: Found) -> bool:
        owner = found.owner
        try:
            self._written(self._store.replace(LEASE, self._content(), found.stored.version))
        except Changed:  # renewed, or taken by another contender
            return False
        if owner is not None:
            self._progress.note(f"{self._store.url}: taken over from {owner}, which has not renewed its lease")
        return True

    def _renew_or_stop(self) -> None:
        """Renews; a process that cannot is stopped as by SIGTERM, and `holding` says why."""
        if self._lost:
            return
        try:
            self._renew()
        except StoreError as error:
            if _now() - self._renewed > self._duration_s:
                self._lost = LeaseError(
                    f"{error}; for {self._duration_s:.0f} s the lease could not be renewed, so another may own it",
                    is_lost=True,
                )
        if self._lost:
            os.kill(os.getpid(), signal.SIGTERM)

    def _renew(self) -> None:
        with self._one_at_a_time:
            try:
                self._written(self._store.replace(LEASE, self._content(), self._stored))
            except (Changed, Missing):
                found = find_lease(self._store)
                if self._adopt(found):
                    return
                owner = None if found is None else found.owner
                since = (
                    f"now owned by {owner}; the run goes on in that process"
                    if owner
                    else "which another took over and gave up again; start the run again"
                )
                self._lost = LeaseError(
                    f"{self._store.url}: this process lost its lease, {since}; here nothing more is written there",
                    is_lost=owner is None,
                )

    def _adopt(self, found: Found | None) -> bool:
        """Whether what is in the store is ours: of a write that was repeated because its answer was lost, and refused
        then. Its version is the one to replace."""
        if found is None or found.owner is None or found.owner.process != self.owner.process:
            return False
        self._written(found.stored.version)
        return True

    def _release(self) -> None:
        """Leaves a lease that is free; not deleted, since only a conditional write is certain to hit our own."""
        with self._one_at_a_time:
            if self._lost:
                return
            try:
                self._store.replace(LEASE, json.dumps({"owner": None}).encode(), self._stored)
            except StoreError as error:
                self._progress.note(f"the lease is left to expire: {error}")

    def _age(self, stored: StoredObject) -> float:
        self._store.write(CLOCK, self.owner.process.encode())
        now = self._store.head(CLOCK)
        return (now.modified - stored.modified).total_seconds() if now is not None else 0.0

    def _content(self) -> bytes:
        renewed = datetime.now(UTC).isoformat(timespec="milliseconds")  # for people; and no two contents are equal
        return json.dumps({"owner": asdict(self.owner), "duration_s": self._duration_s, "renewed": renewed}).encode()

    def _written(self, version: Any) -> None:
        self._stored, self._renewed = version, _now()


def _now() -> float:
    """Seconds of a clock that runs on while the machine is suspended."""
    return time.clock_gettime(TICKING)


@cache
def _kernel() -> str:
    """Names the running kernel and this process's namespace of process ids; a new name where neither is known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid4().hex
