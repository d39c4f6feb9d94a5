"""What the processes of a job tell each other about one save: whether each can write its part, and whether it has.

A checkpoint of several processes is whole when all have written. Orbax has them meet at barriers: one that fails never
comes, and the others learn after 5 or 20 minutes that something failed. So here Orbax believes that each process is the
only one to wait for, and process 0 hears from each, success or what went wrong, and answers all: before the arrays are
written, when process 0 has made the folders, and after. What must hold: a failure in any process is a failure in each,
within seconds. The words go through JAX's coordination service, from the thread that writes, so training does not wait.
"""

import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from lifecycle.core.distributed import words_of_job

# The meetings of each save: all can make their folders, all have written, process 0 has renamed the folder.
CAN_WRITE, WRITTEN, RENAMED = range(1, 4)


class OtherProcessError(OSError):
    """Another process could not write its part; the message is its own."""


_saves = itertools.count()  # of this process, which makes them in the same order as all others


class Commit:
    """One save, which all processes of a job make alike, in `max_s`. Whatever a process raises in its `with` block is
    told to the others."""

    def __init__(self, max_s: float) -> None:
        self._save, self._met, self._max_s = next(_saves), 0, max_s
        if jax.process_count() > 1 and jax.process_index() == 0:  # the service keeps what nobody deletes
            words_of_job().key_value_delete(f"lifecycle/save/{self._save - 2}/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, stack: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)

    def writer(
        self, args: ocp.args.CheckpointArgs, options: ocp.options.AsyncOptions, prepare: Callable[[], None]
    ) -> ocp.AsyncCheckpointer:
        """What writes `args`, from a thread. Orbax makes the folders, in process 0; then `prepare` is called in each
        process, which meets the others before the first array is written."""
        alone = ocp.options.MultiprocessingOptions(active_processes={jax.process_index()})

        def arrays() -> ocp.StandardCheckpointHandler:
            return self._after_meeting(ocp.StandardCheckpointHandler(multiprocessing_options=alone), prepare)

        if isinstance(args, ocp.args.Composite):
            items = ocp.CompositeOptions(multiprocessing_options=alone, async_options=options)
            of_arrays = {name: arrays() for name, arg in args.items() if isinstance(arg, ocp.args.StandardSave)}
            others = [name for name, _ in args.items() if name not in of_arrays]
            # no item has the name of a parameter, which is what is silenced
            handler = ocp.CompositeCheckpointHandler(*others, composite_options=items, **of_arrays)  # pyrefly: ignore[bad-argument-type] - see above
        else:
            handler = arrays()
        return ocp.AsyncCheckpointer(handler, async_options=options, multiprocessing_options=alone)

    def _after_meeting(
        self, handler: ocp.StandardCheckpointHandler, prepare: Callable[[], None]
    ) -> ocp.StandardCheckpointHandler:
        """The handler of an item; the first that is asked to write an array meets the other processes before. When it
        is asked, all items' folders are there."""
        begin = handler.async_save

        async def async_save(*args: Any, **settings: Any) -> Any:
            if self.next_meeting == CAN_WRITE:
                prepare()
                self.meet()
            return await begin(*args, **settings)

        handler.async_save = async_save
        return handler

    @property
    def next_meeting(self) -> int:
        """The number of the meeting to which this process comes next."""
        return self._met + 1

    def meet(self, timeout_ms: int | None = None) -> None:
        """Waits until all processes are here, as a barrier does, by default for `max_s`; raises `OtherProcessError` if
        one of them has failed. Called from the thread that writes."""
        timeout_ms = int(1000 * self._max_s) if timeout_ms is None else timeout_ms
        self._met += 1
        if jax.process_count() == 1:
            return
        meeting = self._meeting(self._met)
        client = words_of_job()
        if jax.process_index() != 0:
            client.key_value_set(f"{meeting}/{jax.process_index()}", "")
            _raise(client.blocking_key_value_get(f"{meeting}/all", timeout_ms))
            return
        for process in range(1, jax.process_count()):
            _raise(client.blocking_key_value_get(f"{meeting}/{process}", timeout_ms))
        client.key_value_set(f"{meeting}/all", "")

    def fail(self, error: BaseException) -> None:
        """Tells the other processes that this one could not write, where they wait for it or will."""
        if jax.process_count() == 1:
            return
        client = words_of_job()
        own = "all" if jax.process_index() == 0 else str(jax.process_index())
        text = str(error) if isinstance(error, OtherProcessError) else f"process {jax.process_index()}: {told(error)}"
        for number in range(max(self._met, 1), RENAMED + 1):
            client.key_value_set(f"{self._meeting(number)}/{own}", text, allow_overwrite=True)

    def _meeting(self, number: int) -> str:
        return f"lifecycle/save/{self._save}/{number}"


def told(error: BaseException) -> str:
    """The error in words; by its type too if its message alone would say little to a user, such as a missing key."""
    return str(error) if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {error}"


def _raise(answer: str) -> None:
    if answer:
        raise OtherProcessError(answer)
