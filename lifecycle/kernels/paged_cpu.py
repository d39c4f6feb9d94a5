"""Attention of single queries to float32 pages, on CPUs with AVX-512.

XLA's loop over pages gathers each page of all rows, and calls two products of a few queries with it: a third of a
decode step of SmolLM2's 135M with int8 weights after 100 tokens (docs/log.md). Here a worker reads a row's keys and
values of one head where they lie, page after page, as flash attention does (Dao et al. 2022). What must hold: a row's
result does not depend on the other rows; nothing is read but positions that the query sees and those that share 16
lanes with them, of which the scores are not used.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from llvmlite import ir

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.cpu_kernels import target_of
from lifecycle.kernels.machine_code import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    POINTER,
    WORD,
    ZERO_FLOATS,
    Emitter,
    compiled,
    has_features,
    word,
)
from lifecycle.kernels.page_store import PageStore
from lifecycle.kernels.paged_rows import Rows
from lifecycle.kernels.workers import OWN, Call, Work, add_handler

DOTS, TILES = 4, 4  # keys at a time; registers of a value at a time
ALONE = 1 << 17  # products of queries and keys that are not worth a second thread: about 10 us
LOWEST = -87.0  # of what `exp` takes: below, a float32 has no exponent for the result

# Words of the record: addresses; queries of a key head, key heads, positions of a page, dimensions, pages of a row.
QUERIES, KEYS, TABLE, BEGIN, END, OUT, GROUP, HEADS, PAGE, WIDTH, PER_ROW = range(OWN, OWN + 11)


def runs_here() -> bool:
    """Whether this machine's processor has the instructions."""
    return has_features("avx512f", "avx512dq")


def takes(store: PageStore, layer: Array | int, rows: Rows) -> bool:
    """Whether single queries meet pages in float32 of a layer that has them by itself, in whole registers."""
    is_alone = isinstance(layer, int) and store.values.shape[0] == 1 and rows.positions.shape[1] == 1
    is_whole = store.entry.slices == 2 and not (store.values.shape[-1] % LANES or rows.size % LANES)
    return is_alone and is_whole and store.values.dtype == jnp.float32


def paged_cpu(q: Float[Array, "N 1 H D"], store: PageStore, rows: Rows, *, scale: float) -> Float[Array, "N 1 H D"]:
    """As `paged_attention`, of a store that it `takes`; zeros in rows without a token."""
    end = rows.last + 1
    begin = jnp.zeros_like(end) if rows.window is None else jnp.maximum(end - rows.window, 0)
    queries = q[:, 0].astype(jnp.float32) * scale
    out = jax.ShapeDtypeStruct(queries.shape, jnp.float32)
    found = jax.ffi.ffi_call(target_of("paged_cpu"), out)(queries, store.values[0], rows.table, begin, end)
    return found[:, None].astype(q.dtype)


def _work(call: Call) -> Work:
    """A piece is the queries of one row that share a key head."""
    b = call.emitter
    q, pages, table, begin, end = (call.argument(number) for number in range(5))
    rows, heads, keys = call.size(q, 0), call.size(q, 1), call.size(pages, 2)
    known = {
        QUERIES: call.data(q), KEYS: call.data(pages), TABLE: call.data(table), BEGIN: call.data(begin),
        END: call.data(end), OUT: call.data(call.result(0)), GROUP: b.udiv(heads, keys), HEADS: keys,
        PAGE: call.size(pages, 3), WIDTH: call.size(pages, 4), PER_ROW: call.size(table, 1),
    }  # fmt: skip
    record = call.record(word(len(known)))
    b.put_all(known, record)
    seen = b.variable(WORD, word(0))
    with b.loop(rows) as row:
        last, first = (b.sext(b.get(b.pointer(record, which), row, INT), WORD) for which in (END, BEGIN))
        b.store(b.add(b.load(seen, typ=WORD), b.sub(last, first)), seen)
    products = b.mul(b.load(seen, typ=WORD), b.mul(heads, b.get(record, WIDTH)))
    return Work(record, b.mul(rows, keys), b.add(word(1), b.udiv(products, word(ALONE))))


class _Piece:
    """The code for one row's queries that share a key head."""

    def __init__(self, b: Emitter, record: Any, number: Any) -> None:
        self.b, self.record = b, record
        self.group, self.heads, self.page, self.width = (b.get(record, which) for which in (GROUP, HEADS, PAGE, WIDTH))
        self.row, self.head = b.udiv(number, self.heads), b.urem(number, self.heads)
        self.begin, self.end = (b.sext(b.get(b.pointer(record, which), self.row, INT), WORD) for which in (BEGIN, END))
        first = b.add(b.mul(self.row, b.mul(self.heads, self.group)), b.mul(self.head, self.group))
        self.queries, self.out = (
            b.at(b.pointer(record, which), b.mul(first, self.width), FLOAT) for which in (QUERIES, OUT)
        )
        self.lanes = ir.Constant(INTS, list(range(LANES)))

    def emit(self) -> None:
        """The whole piece."""
        b = self.b
        stack = b.intrinsic("llvm.stacksave.p0", POINTER)
        self.scores, self.tops, self.totals = (b.room(size) for size in (self.page, self.group, self.group))
        with b.loop(self.group) as query:
            b.put(ir.Constant(FLOAT, float("-inf")), self.tops, query, FLOAT)
            b.put(ir.Constant(FLOAT, 0.0), self.totals, query, FLOAT)
        with b.loop(b.mul(self.group, self.width), LANES) as place:
            b.put(ZERO_FLOATS, self.out, place, FLOAT)
        last = b.udiv(b.add(self.end, b.sub(self.page, word(1))), self.page)
        with b.loop(last, start=b.udiv(self.begin, self.page)) as number:
            self._one_page(number)
        with b.loop(self.group) as query:
            self._divide(query)
        b.intrinsic("llvm.stackrestore.p0", ir.VoidType(), stack)

    def _one_page(self, number: Any) -> None:
        b, size = self.b, self.b.mul(self.page, self.width)
        table = b.add(b.mul(self.row, b.get(self.record, PER_ROW)), number)
        page = b.zext(b.get(b.pointer(self.record, TABLE), table, INT), WORD)
        slices = [b.add(b.mul(page, word(2)), word(which)) for which in range(2)]
        places = [b.mul(b.add(b.mul(which, self.heads), self.head), size) for which in slices]
        keys, values = (b.at(b.pointer(self.record, KEYS), place, FLOAT) for place in places)
        start = b.mul(number, self.page)
        low = b.sub(b.intrinsic("llvm.umax.i64", WORD, self.begin, start), start)
        high = b.least(b.sub(self.end, start), self.page)
        with b.loop(self.group) as query:
            largest = self._score(query, keys, low, high)
            shrink = self._weigh(query, low, high, largest)
            self._add(query, values, low, high, shrink)

    def _score(self, query: Any, keys: Any, low: Any, high: Any) -> Any:
        """Writes the scores of positions `low` to `high` of a page, below them and above -inf; returns the largest."""
        b, most = self.b, self.b.variable(FLOATS, ir.Constant(FLOATS, [float("-inf")] * LANES))
        own = b.at(self.queries, b.mul(query, self.width), FLOAT)
        with b.loop(high, LANES, b.and_(low, word(-LANES))) as block:
            for first in range(0, LANES, DOTS):
                self._dots(own, keys, b.add(block, word(first)))
            seen = self._is_seen(block, low, high)
            scores = b.select(seen, b.get(self.scores, block, FLOAT, FLOATS), _all(float("-inf")))
            b.put(scores, self.scores, block, FLOAT)
            b.store(b.intrinsic("llvm.maxnum.v16f32", FLOATS, b.load(most, typ=FLOATS), scores), most)
        largest = b.intrinsic("llvm.vector.reduce.fmax.v16f32", FLOAT, b.load(most, typ=FLOATS))
        return b.intrinsic("llvm.maxnum.f32", FLOAT, largest, b.get(self.tops, query, FLOAT))

    def _dots(self, query: Any, keys: Any, first: Any) -> None:
        b, sums = self.b, [self.b.variable(FLOATS, ZERO_FLOATS) for _ in range(DOTS)]
        rows = [b.at(keys, b.mul(b.add(first, word(after)), self.width), FLOAT) for after in range(DOTS)]
        with b.loop(self.width, LANES) as place:
            own = b.get(query, place, FLOAT, FLOATS)
            for row, total in zip(rows, sums, strict=True):
                b.store(_fma(b, own, b.get(row, place, FLOAT, FLOATS), b.load(total, typ=FLOATS)), total)
        for after, total in enumerate(sums):
            b.put(_lanes_sum(b, b.load(total, typ=FLOATS)), self.scores, b.add(first, word(after)), FLOAT)

    def _is_seen(self, block: Any, low: Any, high: Any) -> Any:
        b = self.b
        after, before = (b.spread(b.trunc(b.sub(end, block), INT)) for end in (low, high))
        return b.and_(b.icmp_signed(">=", self.lanes, after), b.icmp_signed("<", self.lanes, before))

    def _weigh(self, query: Any, low: Any, high: Any, largest: Any) -> Any:
        """Replaces the scores by their weights, adds these to the total, and returns what earlier sums shrink by."""
        b, sums = self.b, self.b.variable(FLOATS, ZERO_FLOATS)
        top = b.spread(largest)
        with b.loop(high, LANES, b.and_(low, word(-LANES))) as block:
            weights = _exp(b, b.fsub(b.get(self.scores, block, FLOAT, FLOATS), top))
            b.put(weights, self.scores, block, FLOAT)
            b.store(b.fadd(b.load(sums, typ=FLOATS), weights), sums)
        before = b.get(self.tops, query, FLOAT)
        shrink = b.extract_element(_exp(b, b.spread(b.fsub(before, largest))), ir.Constant(INT, 0))
        total = b.fadd(b.fmul(b.get(self.totals, query, FLOAT), shrink), _lanes_sum(b, b.load(sums, typ=FLOATS)))
        b.put(largest, self.tops, query, FLOAT)
        b.put(total, self.totals, query, FLOAT)
        return shrink

    def _add(self, query: Any, values: Any, low: Any, high: Any, shrink: Any) -> None:
        b, whole = self.b, self.b.and_(self.width, word(-LANES * TILES))
        out = b.at(self.out, b.mul(query, self.width), FLOAT)
        with b.loop(whole, LANES * TILES) as place:
            self._add_tiles(out, values, low, high, shrink, place, TILES)
        with b.loop(self.width, LANES, whole) as place:
            self._add_tiles(out, values, low, high, shrink, place, 1)

    def _add_tiles(self, out: Any, values: Any, low: Any, high: Any, shrink: Any, place: Any, tiles: int) -> None:
        """Adds the weighted values, of even and of odd positions by themselves, to some registers of the output."""
        b, factor = self.b, self.b.spread(shrink)
        places = [b.add(place, word(LANES * tile)) for tile in range(tiles)]
        sums = [[b.variable(FLOATS, b.fmul(b.get(out, at, FLOAT, FLOATS), factor)) for at in places]]
        sums.append([b.variable(FLOATS, ZERO_FLOATS) for _ in places])

        def add(position: Any, own: list[Any]) -> None:
            weight = b.spread(b.get(self.scores, position, FLOAT))
            row = b.at(values, b.mul(position, self.width), FLOAT)
            for at, total in zip(places, own, strict=True):
                b.store(_fma(b, weight, b.get(row, at, FLOAT, FLOATS), b.load(total, typ=FLOATS)), total)

        pairs = b.add(low, b.and_(b.sub(high, low), word(-2)))
        with b.loop(pairs, 2, low) as position:
            for after, own in enumerate(sums):
                add(b.add(position, word(after)), own)
        with b.loop(high, 1, pairs) as position:
            add(position, sums[0])
        for at, even, odd in zip(places, *sums, strict=True):
            b.put(b.fadd(b.load(even, typ=FLOATS), b.load(odd, typ=FLOATS)), out, at, FLOAT)

    def _divide(self, query: Any) -> None:
        b, total = self.b, self.b.get(self.totals, query, FLOAT)
        is_any = b.fcmp_unordered("!=", total, ir.Constant(FLOAT, 0.0))
        one = b.fdiv(ir.Constant(FLOAT, 1.0), total)
        factor = b.spread(b.select(is_any, one, ir.Constant(FLOAT, 0.0)))
        out = b.at(self.out, b.mul(query, self.width), FLOAT)
        with b.loop(self.width, LANES) as place:
            b.put(b.fmul(b.get(out, place, FLOAT, FLOATS), factor), out, place, FLOAT)


def _all(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def _fma(b: Emitter, one: Any, other: Any, before: Any) -> Any:
    return b.intrinsic("llvm.fma.v16f32", FLOATS, one, other, before)


def _lanes_sum(b: Emitter, lanes: Any) -> Any:
    """The sum of a register's lanes: halves are added to halves."""
    width = LANES
    while width > 1:
        width //= 2
        lower, upper = (ir.Constant(ir.VectorType(INT, width), list(range(at, at + width))) for at in (0, width))
        none = ir.Constant(lanes.type, ir.Undefined)
        lanes = b.fadd(b.shuffle_vector(lanes, none, lower), b.shuffle_vector(lanes, none, upper))
    return b.extract_element(lanes, ir.Constant(INT, 0))


def _exp(b: Emitter, x: Any) -> Any:
    """`exp` of numbers up to 0, by powers of two and a polynomial (Cephes, `expf`): to 2 units in the last place; 0
    below `LOWEST`, NaN of NaN."""
    is_small = b.fcmp_ordered("<", x, _all(LOWEST))
    held = b.select(is_small, _all(LOWEST), x)
    power = b.intrinsic("llvm.rint.v16f32", FLOATS, b.fmul(held, _all(1.44269504088896341)))
    rest = _fma(b, power, _all(-0.693359375), held)
    rest = _fma(b, power, _all(2.12194440e-4), rest)
    sums = _all(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        sums = _fma(b, sums, rest, _all(factor))
    bits = b.shl(b.add(b.fptosi(power, INTS), ir.Constant(INTS, [127] * LANES)), ir.Constant(INTS, [23] * LANES))
    return b.select(is_small, ZERO_FLOATS, b.fmul(sums, b.bitcast(bits, FLOATS)))


@functools.cache
def handler() -> Any:
    """The handler, compiled for this machine, as `jax.ffi.register_ffi_target` takes it."""
    module = ir.Module("attention")
    add_handler(module, _work, lambda b, record, number: _Piece(b, record, number).emit())
    return compiled(module)
