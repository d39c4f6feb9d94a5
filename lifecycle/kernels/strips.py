"""Products of rows with several weights, whose strips of 16 columns workers divide among them (`workers.py`).

A piece of the work is some strips of a weight. The call is `(rows [N, D], buffers of a weight ..., ...) -> (out [N, F],
..., workspace)`. What a strip's product is, and what is made of the rows before, say the kinds of products: `vnni.py`,
`float_strips.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from lifecycle.kernels import workers
from lifecycle.kernels.machine_code import LANES, NOTHING, POINTER, WORD, Emitter, word
from lifecycle.kernels.workers import OWN, Call, Work

STRIPS = 4  # that a worker takes at a time: 39 kB of a weight of 576 rows in 8 bits
HEIGHTS = (8, 4, 2, 1)  # rows at a time

# Words of the record, then `OF_WEIGHT` words for each weight.
NUM_WEIGHTS, ROWS, DEPTH, VALUES, SCALES, SUMS, WEIGHTS = range(OWN, OWN + 7)
# Words of a weight: addresses of its buffers and of its product; columns; pieces up to and with it; its strips' code.
FIRST, SECOND, OUT, COLUMNS, LAST_PIECE, CODE, OF_WEIGHT = range(7)


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of products."""

    num_buffers: int  # of a weight
    # (emitter, rows' address, workspace's address, rows, depth) -> what strips read as VALUES, SCALES and SUMS
    prepare: Callable[[Emitter, Any, Any, Any, Any], tuple[Any, Any, Any]]
    # (call, a weight's first buffer) -> the address of a function `(record, weight, begin, end)`
    code: Callable[[Call, Any], Any]


def add_handler(module: ir.Module, kind: Kind) -> None:
    """Adds the function `handler`, which XLA calls for each product."""
    workers.add_handler(module, lambda call: _work(call, kind), _piece)


def _piece(b: Emitter, record: Any, piece: Any) -> None:
    before = b.variable(WORD, word(0))
    with b.loop(b.get(record, NUM_WEIGHTS)) as number:
        weight = b.at(record, b.add(word(WEIGHTS), b.mul(number, word(OF_WEIGHT))))
        first, last = b.load(before, typ=WORD), b.get(weight, LAST_PIECE)
        is_its = b.and_(b.icmp_unsigned(">=", piece, first), b.icmp_unsigned("<", piece, last))
        with b.if_then(is_its):
            begin = b.mul(b.sub(piece, first), word(STRIPS))
            end = b.least(b.add(begin, word(STRIPS)), b.udiv(b.get(weight, COLUMNS), word(LANES)))
            b.call_at(b.get(weight, CODE), NOTHING, record, weight, begin, end)
        b.store(last, before)


def _work(call: Call, kind: Kind) -> Work:
    b, first = call.emitter, call.argument(0)
    rows, depth = call.size(first, 0), call.size(first, 1)
    num_weights = b.sub(call.num_results, word(1))
    record = call.record(b.add(b.mul(num_weights, word(OF_WEIGHT)), word(WEIGHTS - OWN)))
    pieces = b.variable(WORD, word(0))
    with b.loop(num_weights) as number:
        out = call.result(number)
        columns = call.size(out, 1)
        whole = b.udiv(b.add(columns, word(LANES * STRIPS - 1)), word(LANES * STRIPS))
        b.store(b.add(b.load(pieces, typ=WORD), whole), pieces)
        weight = b.at(record, b.add(word(WEIGHTS), b.mul(number, word(OF_WEIGHT))))
        place = b.add(b.mul(number, word(kind.num_buffers)), word(1))
        buffers = [call.argument(b.add(place, word(after))) for after in range(kind.num_buffers)]
        known = {OUT: call.data(out), COLUMNS: columns, LAST_PIECE: b.load(pieces, typ=WORD)}
        known |= dict(enumerate(call.data(buffer) for buffer in buffers))
        known[CODE] = kind.code(call, buffers[0])
        b.put_all(known, weight)
    workspace = call.data(call.result(num_weights))
    values, scales, sums = kind.prepare(b, call.data(first), workspace, rows, depth)
    known = {NUM_WEIGHTS: num_weights, ROWS: rows, DEPTH: depth, VALUES: values, SCALES: scales, SUMS: sums}
    b.put_all(known, record)
    all_pieces = b.load(pieces, typ=WORD)
    return Work(record, all_pieces, all_pieces)


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
