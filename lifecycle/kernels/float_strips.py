"""Products in float32 on CPUs with AVX-512, of weights in strips of 16 columns: `values[strip, row, column]`.

XLA's product of few rows reads the weights once for several threads' parts and reaches a fifth of the machine's rate
with 8 rows, and its sums are in another order for every number of rows (docs/log.md). What must hold: a result does not
depend on how many rows there are; so every height adds the products of even and of odd inputs by themselves.
"""

import functools
from typing import Any

from llvmlite import ir

from lifecycle.kernels.machine_code import (
    FLOAT,
    FLOATS,
    LANES,
    WORD,
    ZERO_FLOATS,
    Emitter,
    compiled,
    has_features,
    word,
)
from lifecycle.kernels.strips import COLUMNS, DEPTH, FIRST, OUT, VALUES, Kind, add_handler, add_strips

PARTS = 2  # sums of a result: as many as hide the latency of an addition for a single row


def runs_here() -> bool:
    """Whether this machine's processor has the instructions."""
    return has_features("avx512f")


def _block(b: Emitter, record: Any, weight: Any, strip: Any, row: Any, height: int) -> None:
    depth, columns = b.get(record, DEPTH), b.get(weight, COLUMNS)
    held = b.at(b.pointer(weight, FIRST), b.mul(strip, b.mul(depth, word(LANES))), FLOAT)
    rows = [b.add(row, word(below)) for below in range(height)]
    starts = [b.at(b.pointer(record, VALUES), b.mul(own, depth), FLOAT) for own in rows]
    sums = [[b.variable(FLOATS, ZERO_FLOATS) for _ in range(PARTS)] for _ in rows]
    with b.loop(depth, PARTS) as first:
        for part in range(PARTS):
            place = b.add(first, word(part))
            values = b.get(held, b.mul(place, word(LANES)), FLOAT, FLOATS)
            for start, own in zip(starts, sums, strict=True):
                factor, before = b.spread(b.get(start, place, FLOAT)), b.load(own[part], typ=FLOATS)
                b.store(b.intrinsic("llvm.fma.v16f32", FLOATS, factor, values, before), own[part])
    for own, parts in zip(rows, sums, strict=True):
        total = functools.reduce(b.fadd, [b.load(part, typ=FLOATS) for part in parts])
        b.put(total, b.pointer(weight, OUT), b.add(b.mul(own, columns), b.mul(strip, word(LANES))), FLOAT)


def _as_they_are(b: Emitter, rows: Any, workspace: Any, num_rows: Any, depth: Any) -> tuple[Any, Any, Any]:
    return rows, word(0), word(0)


@functools.cache
def handler() -> Any:
    """The handler, compiled for this machine, as `jax.ffi.register_ffi_target` takes it."""
    module = ir.Module("products of floats")
    strips = add_strips(module, "strips", _block)
    add_handler(module, Kind(1, _as_they_are, lambda call, _: call.emitter.ptrtoint(strips, WORD)))
    return compiled(module)
