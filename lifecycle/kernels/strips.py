"""Products of rows with several weights, whose strips of 16 columns XLA's threads divide among them.

A worker takes pieces of the weights, some strips each, until none is left; a handler of XLA's foreign function
interface (`xla/ffi/api/c_api.h`, version 0.1, whose structs the numbers here are words of) starts workers on XLA's
threads. It is `handler(rows [N, D], buffers of a weight ..., ...) -> (out [N, F], ..., workspace)`. What a strip's
product is, and what is made of the rows before, say the kinds of products: `vnni.py`, `float_strips.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from lifecycle.kernels.machine_code import INT, LANES, NOTHING, POINTER, WORD, Emitter, word

STRIPS = 4  # that a worker takes at a time: 39 kB of a weight of 576 rows in 8 bits
HEIGHTS = (8, 4, 2, 1)  # rows at a time

# Words of the record that a product's workers share, then `OF_WEIGHT` words for each weight.
NEXT, DONE, HOLDERS, PIECES, NUM_WEIGHTS, ROWS, DEPTH, VALUES, SCALES, SUMS, WEIGHTS = range(11)
# Words of a weight: addresses of its buffers and of its product; columns; pieces up to and with it; its strips' code.
FIRST, SECOND, OUT, COLUMNS, LAST_PIECE, CODE, OF_WEIGHT = range(7)
# Words of XLA's structs: a call frame's arguments and results (the word two before is their number), a buffer's address
# and sizes, and the functions of its interface that start a task on a thread and count the threads.
ARGUMENTS, RESULTS, DATA, DIMS, SCHEDULE, NUM_THREADS = 9, 14, 3, 5, 17, 18


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of products."""

    num_buffers: int  # of a weight
    # (emitter, rows' address, workspace's address, rows, depth) -> what strips read as VALUES, SCALES and SUMS
    prepare: Callable[[Emitter, Any, Any, Any, Any], tuple[Any, Any, Any]]
    # (emitter, address of the sizes of a weight's first buffer) -> a function `(record, weight, begin, end)`'s address
    code: Callable[[Emitter, Any], Any]


def add_handler(module: ir.Module, kind: Kind) -> None:
    """Adds the function `handler`, which XLA calls: first to ask for the version of its interface, then for each
    product."""
    worker = _worker(module)
    b, (frame,) = Emitter.of(module, "handler", POINTER, POINTER)
    extension, nothing = b.pointer(frame, 1), ir.Constant(POINTER, None)
    with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(extension, WORD), word(0))):
        metadata = b.pointer(extension, 3)
        for place, number in ((6, 0), (7, 1), (8, 0)):  # version 0.1, no traits
            b.put(ir.Constant(INT, number), metadata, place, INT)
        b.ret(nothing)
        b.position_at_end(b.append_basic_block())
    record = _record(b, frame, kind)
    request = b.request(word(40), word(0), b.get(frame, 3), b.ptrtoint(worker, WORD), b.ptrtoint(record, WORD))
    with b.loop(b.sub(b.get(record, HOLDERS), word(2))):
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


def _worker(module: ir.Module) -> Any:
    """Takes pieces of the record's weights until none is left."""
    b, (record,) = Emitter.of(module, "worker", NOTHING, POINTER)
    take, own, after = (b.append_basic_block() for _ in range(3))
    b.branch(take)
    b.position_at_end(take)
    piece = b.count(record, NEXT, 1)
    b.cbranch(b.icmp_unsigned("<", piece, b.get(record, PIECES)), own, after)
    b.position_at_end(own)
    before = b.variable(WORD, word(0))
    with b.loop(b.get(record, NUM_WEIGHTS)) as number:
        weight = b.at(record, b.add(word(WEIGHTS), b.mul(number, word(OF_WEIGHT))))
        first, last = b.load(before, typ=WORD), b.get(weight, LAST_PIECE)
        is_its = b.and_(b.icmp_unsigned(">=", piece, first), b.icmp_unsigned("<", piece, last))
        with b.if_then(is_its):
            begin = b.mul(b.sub(piece, first), word(STRIPS))
            end, all_strips = b.add(begin, word(STRIPS)), b.udiv(b.get(weight, COLUMNS), word(LANES))
            end = b.select(b.icmp_unsigned("<", end, all_strips), end, all_strips)
            b.call_at(b.get(weight, CODE), NOTHING, record, weight, begin, end)
        b.store(last, before)
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


def _record(b: Emitter, frame: Any, kind: Kind) -> Any:
    """The record of a call: held by the caller, its own worker, and one for each of the other threads.

    A worker that starts late finds no piece left; it may end after the call, so whoever leaves last frees the record.
    """
    arguments, results = b.pointer(frame, ARGUMENTS), b.pointer(frame, RESULTS)
    first = b.pointer(arguments, 0)
    rows, depth = b.get(b.pointer(first, DIMS), 0), b.get(b.pointer(first, DIMS), 1)
    num_weights = b.sub(b.get(frame, RESULTS - 2), word(1))
    size = b.mul(b.add(b.mul(num_weights, word(OF_WEIGHT)), word(WEIGHTS)), word(8))
    record = b.intrinsic("malloc", POINTER, size)
    pieces = b.variable(WORD, word(0))
    with b.loop(num_weights) as number:
        out = b.pointer(results, number)
        columns = b.get(b.pointer(out, DIMS), 1)
        whole = b.udiv(b.add(columns, word(LANES * STRIPS - 1)), word(LANES * STRIPS))
        b.store(b.add(b.load(pieces, typ=WORD), whole), pieces)
        weight = b.at(record, b.add(word(WEIGHTS), b.mul(number, word(OF_WEIGHT))))
        place = b.add(b.mul(number, word(kind.num_buffers)), word(1))
        buffers = [b.pointer(arguments, b.add(place, word(after))) for after in range(kind.num_buffers)]
        known = {OUT: b.get(out, DATA), COLUMNS: columns, LAST_PIECE: b.load(pieces, typ=WORD)}
        known |= dict(enumerate(b.get(buffer, DATA) for buffer in buffers))
        known[CODE] = kind.code(b, b.pointer(buffers[0], DIMS))
        _put_all(b, weight, known)
    workspace = b.get(b.pointer(results, num_weights), DATA)
    values, scales, sums = kind.prepare(b, b.get(first, DATA), workspace, rows, depth)
    threads = b.variable(WORD, word(1))
    request = b.request(word(32), word(0), b.get(frame, 3), b.ptrtoint(threads, WORD))
    b.call_at(b.get(b.pointer(frame, 2), NUM_THREADS), POINTER, request)
    helpers = b.sub(b.intrinsic("llvm.umin.i64", WORD, b.load(threads, typ=WORD), b.load(pieces, typ=WORD)), word(1))
    known = {
        NEXT: word(0), DONE: word(0), HOLDERS: b.add(helpers, word(2)), PIECES: b.load(pieces, typ=WORD),
        NUM_WEIGHTS: num_weights, ROWS: rows, DEPTH: depth, VALUES: values, SCALES: scales, SUMS: sums,
    }  # fmt: skip
    _put_all(b, record, known)
    return record


def _put_all(b: Emitter, base: Any, words: dict[int, Any]) -> None:
    for place, value in words.items():
        b.put(value, base, place)


def add_strips(module: ir.Module, name: str, block: Callable[[Emitter, Any, Any, Any, Any, int], None]) -> Any:
    """A function `(record, weight, begin, end)` for strips `begin` to `end` of a weight. `block(emitter, record,
    weight, strip, row, height)` is the product of a strip with `height` rows from `row` on."""
    b, (record, weight, begin, end) = Emitter.of(module, name, NOTHING, POINTER, POINTER, WORD, WORD)
    rows = b.get(record, ROWS)
    with b.loop(end, start=begin) as strip:
        first: Any = word(0)
        for height in HEIGHTS:
            last = b.and_(rows, word(-height))
            with b.loop(last, height, first) as row:
                block(b, record, weight, strip, row, height)
            first = last
    b.ret_void()
    return b.function
