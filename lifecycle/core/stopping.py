"""SIGTERM as a request: what runs long finishes its step, saves, and ends with a status that asks for a restart.

Orchestrators send SIGTERM before they take a machine away, and SIGKILL after a grace time. Work that can stop in order
asks `StopRequest.reached` between steps; all else is ended at once, as its artifacts survive any kill. In a job of
several processes JAX's coordination service passes the notice on and chooses the step at which all of them stop.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from lifecycle.core import preemption
from lifecycle.core.distributed import has_joined
from lifecycle.core.lease import LeaseError
from lifecycle.core.rendezvous import JobError

RESTART_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on from here
LOST_STATUS = 69  # EX_UNAVAILABLE: another process of the job, or the run's lease, is lost, or this process hangs
# A launcher's one request can arrive twice: Slurm signals all processes of a step, and `uv run` passes its own on.
REPEAT_S = 2.0
RESEND_S = 0.05
# How a collective that breaks off begins its message, by absl's status codes; jaxlib raises some as `ValueError`. The
# other codes, such as `RESOURCE_EXHAUSTED`, are faults that would come again.
BROKEN_OFF = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|DATA_LOSS): ")


class Stopped(Exception):
    """The job was asked to stop, and has saved its work."""


def sent_again(unraisable: "sys.UnraisableHookArgs") -> bool:
    """Whether a signal's exception was lost, and the signal is on its way once more.

    SIGINT and SIGTERM raise wherever Python happens to be. In a callback that cannot raise, such as JAX's behind a
    garbage collection, that ends nothing: 2 of 25 interrupts of a run that was importing its libraries went by.
    """
    numbers: dict[type[BaseException], int] = {KeyboardInterrupt: signal.SIGINT, Stopped: signal.SIGTERM}
    number = numbers.get(unraisable.exc_type)
    if number is None:
        return False
    again = threading.Timer(RESEND_S, os.kill, (os.getpid(), number))  # the handler must not run in this callback
    again.daemon = True
    again.start()
    return True


def failure_status(error: BaseException) -> int:
    """The exit status of a process that ends with this error: 1, or `LOST_STATUS` if, in a job of several, its cause is
    a collective that broke off, as all do when a process is lost, or a process that did not come; also for a lease
    that could not be renewed."""
    if isinstance(error, JobError | LeaseError):
        return LOST_STATUS if error.is_lost else 1
    cause: BaseException | None = error if has_joined() else None
    while cause is not None:
        if BROKEN_OFF.match(str(cause)):
            return LOST_STATUS
        cause = cause.__cause__ or cause.__context__
    return 1


class StopRequest:
    """Whether this job has been asked to stop. One that has not been asked yet takes SIGTERM while `listening`."""

    def __init__(self) -> None:
        self._asked_at: float | None = None  # seconds on the monotonic clock

    @contextmanager
    def listening(self) -> Generator[None]:
        """Takes SIGTERM as a request inside the block, in a job JAX's service does; another one, `REPEAT_S` or more
        after it, ends the process at once. Only the main thread can listen: in others nothing changes."""
        if has_joined():
            with preemption.listening():
                yield
            return
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @property
    def came_late(self) -> bool:
        """Whether this process was asked after the last step, while it measured and saved. In a job of several, JAX's
        service keeps the notice for the steps to come."""
        return self._asked_at is not None

    def reached(self, step: int) -> bool:
        """Whether to stop after this step. All processes of a job ask after every step, and get the same answer."""
        if not has_joined():
            return self._asked_at is not None
        from jax.experimental import multihost_utils

        if is_reached := multihost_utils.reached_preemption_sync_point(step):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        return is_reached

    def _ask(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at >= REPEAT_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
