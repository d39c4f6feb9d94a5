"""Work that a kernel for CPUs divides among XLA's threads, as a handler of XLA's foreign function interface.

A call's work is a number of pieces. Workers, the calling thread and helpers on XLA's threads, take one after the other
until none is left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from lifecycle.kernels.machine_code import (
    ARGUMENTS,
    DATA,
    DIMS,
    NOTHING,
    POINTER,
    RESULTS,
    WORD,
    Emitter,
    handler_of,
    word,
)

# Words of the record that a call's workers share; the kernel's own come behind.
NEXT, DONE, HOLDERS, PIECES, OWN = range(5)
# Words of XLA's interface: the functions that start a task on a thread and count the threads.
SCHEDULE, NUM_THREADS = 17, 18


@dataclass(frozen=True)
class Call:
    """What a call gives a kernel."""

    emitter: Emitter
    frame: Any

    def argument(self, number: Any) -> Any:
        """A buffer."""
        return self.emitter.pointer(self.emitter.pointer(self.frame, ARGUMENTS), number)

    def result(self, number: Any) -> Any:
        """A buffer."""
        return self.emitter.pointer(self.emitter.pointer(self.frame, RESULTS), number)

    @property
    def num_results(self) -> Any:
        """How many buffers the results are."""
        return self.emitter.get(self.frame, RESULTS - 2)

    def data(self, buffer: Any) -> Any:
        """The address of a buffer's elements."""
        return self.emitter.get(buffer, DATA)

    def size(self, buffer: Any, dimension: int) -> Any:
        """A buffer's size in a dimension."""
        return self.emitter.get(self.emitter.pointer(buffer, DIMS), dimension)

    def record(self, words: Any) -> Any:
        """Room for a record with so many words of the kernel's own."""
        return self.emitter.intrinsic("malloc", POINTER, self.emitter.mul(self.emitter.add(words, word(OWN)), word(8)))


@dataclass(frozen=True)
class Work:
    """The work of a call."""

    record: Any
    pieces: Any
    most: Any  # workers that it is worth


def add_handler(module: ir.Module, work_of: Callable[[Call], Work], piece: Callable[[Emitter, Any, Any], None]) -> None:
    """Adds the function `handler`, which XLA calls for each call of the kernel. `work_of(call)` makes the record;
    `piece(emitter, record, number)` does a piece of the work."""
    worker = _worker(module, piece)
    b, frame, nothing = handler_of(module)
    work = work_of(Call(b, frame))
    record = work.record
    helpers = _helpers(b, frame, work)
    b.put_all({NEXT: word(0), DONE: word(0), HOLDERS: b.add(helpers, word(2)), PIECES: work.pieces}, record)
    request = b.request(word(40), word(0), b.get(frame, 3), b.ptrtoint(worker, WORD), b.ptrtoint(record, WORD))
    with b.loop(helpers):
        b.call_at(b.get(b.pointer(frame, 2), SCHEDULE), POINTER, request)
    b.call(worker, [record])
    wait, after = b.append_basic_block(), b.append_basic_block()
    b.branch(wait)
    b.position_at_end(wait)
    b.intrinsic("llvm.x86.sse2.pause", NOTHING)  # `sched_yield`: a decode step of 14 ms, not 8
    done = b.load_atomic(b.at(record, DONE), "acquire", 8, typ=WORD)
    b.cbranch(b.icmp_unsigned("<", done, b.get(record, PIECES)), wait, after)
    b.position_at_end(after)
    _leave(b, record)
    b.ret(nothing)


def _helpers(b: Emitter, frame: Any, work: Work) -> Any:
    """How many threads help the calling one."""
    threads = b.variable(WORD, word(1))
    request = b.request(word(32), word(0), b.get(frame, 3), b.ptrtoint(threads, WORD))
    b.call_at(b.get(b.pointer(frame, 2), NUM_THREADS), POINTER, request)
    workers = b.load(threads, typ=WORD)
    for most in (work.pieces, work.most):
        workers = b.least(workers, most)
    return b.sub(b.intrinsic("llvm.umax.i64", WORD, workers, word(1)), word(1))


def _worker(module: ir.Module, piece: Callable[[Emitter, Any, Any], None]) -> Any:
    """Takes pieces of a record's work until none is left.

    The record is held by the caller, its own worker, and one for each helper. A helper that starts late finds no piece
    left; it may end after the call, so whoever leaves last frees the record.
    """
    b, (record,) = Emitter.of(module, "worker", NOTHING, POINTER)
    take, own, after = (b.append_basic_block() for _ in range(3))
    b.branch(take)
    b.position_at_end(take)
    number = b.count(record, NEXT, 1)
    b.cbranch(b.icmp_unsigned("<", number, b.get(record, PIECES)), own, after)
    b.position_at_end(own)
    piece(b, record, number)
    b.count(record, DONE, 1)
    b.branch(take)
    b.position_at_end(after)
    _leave(b, record)
    b.ret_void()
    return b.function


def _leave(b: Emitter, record: Any) -> None:
    """Frees the record if no other worker holds it."""
    with b.if_then(b.icmp_unsigned("==", b.count(record, HOLDERS, -1), word(1))):
        b.intrinsic("free", NOTHING, record)
