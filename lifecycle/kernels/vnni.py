"""Products of int8 and int4 values on CPUs with AVX-512 VNNI (`kernels/strips.py`).

XLA's own loops widen the values, 64 products an instruction become 8 (docs/log.md, "int8 on two cores"). Rows are
rounded to 8 bits in groups of 32. `vpdpbusd` multiplies unsigned by signed bytes, so the weights are stored with 128
added (`kernels/packed.py`), and a group's sum begins at -128 times the sum of the row's values: an exact integer.
Values of 4 bits become bytes in registers, 16 times as large. What must hold: a row's result does not depend on the
other rows; every height adds a row's groups in the same order.
"""

import functools
from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from lifecycle.kernels.machine_code import (
    BYTE,
    BYTES,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    NOTHING,
    POINTER,
    SHORT,
    SHORTS,
    WORD,
    ZERO_FLOATS,
    ZEROS,
    Emitter,
    compiled,
    has_features,
    word,
)
from lifecycle.kernels.quantised import GROUP, SMALLEST
from lifecycle.kernels.strips import (
    COLUMNS,
    DEPTH,
    FIRST,
    OUT,
    SCALES,
    SECOND,
    SUMS,
    VALUES,
    Kind,
    add_handler,
    add_strips,
)
from lifecycle.kernels.workers import Call

FOURS = GROUP // 4  # registers of a group's bytes


def _round(module: ir.Module) -> Any:
    """Groups of 32 floats as int8 values, as `rounded` does; their scale, and -128 times their sum."""
    b, (x, values, scales, sums, groups) = Emitter.of(module, "round", NOTHING, *[POINTER] * 4, WORD)
    rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(INT, 4)  # all lanes; to nearest
    with b.loop(groups) as group:
        places = [b.add(b.mul(group, word(GROUP)), word(start)) for start in range(0, GROUP, LANES)]
        # magnitudes of floats are ordered as their bits are, and those that are not finite are the largest
        sign = ir.Constant(INTS, [0x7FFFFFFF] * LANES)
        bits = [b.and_(b.get(x, place, FLOAT, INTS), sign) for place in places]
        most = functools.reduce(lambda one, other: b.intrinsic("llvm.umax.v16i32", INTS, one, other), bits)
        largest = b.bitcast(b.intrinsic("llvm.vector.reduce.umax.v16i32", INT, most), FLOAT)
        is_small = b.fcmp_ordered("<", largest, ir.Constant(FLOAT, SMALLEST))
        largest = b.select(is_small, ir.Constant(FLOAT, 1.0), largest)
        factor = b.spread(b.fdiv(ir.Constant(FLOAT, 127.0), largest))
        b.put(b.fdiv(largest, ir.Constant(FLOAT, 127.0)), scales, group, FLOAT)
        scaled = [b.fmul(b.get(x, place, FLOAT, FLOATS), factor) for place in places]
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        whole = [b.intrinsic(name, INTS, floats, ZEROS, *rounding) for floats in scaled]
        for place, integers in zip(places, whole, strict=True):
            b.put(b.trunc(integers, BYTES), values, place, BYTE)
        total = b.intrinsic("llvm.vector.reduce.add.v16i32", INT, functools.reduce(b.add, whole))
        b.put(b.mul(total, ir.Constant(INT, -128)), sums, group, INT)
    b.ret_void()
    return b.function


def _block(bits: int, b: Emitter, record: Any, weight: Any, strip: Any, row: Any, height: int) -> None:
    """The product of a strip of values of `bits` with rows from `row` on."""
    values, scales, sums = (b.pointer(record, known) for known in (VALUES, SCALES, SUMS))
    held, held_scale, out = (b.pointer(weight, known) for known in (FIRST, SECOND, OUT))
    groups, columns, size = b.udiv(b.get(record, DEPTH), word(GROUP)), b.get(weight, COLUMNS), LANES * GROUP * bits // 8
    first, rows = b.mul(strip, groups), [b.add(row, word(below)) for below in range(height)]
    totals = [b.variable(FLOATS, ZERO_FLOATS) for _ in rows]
    with b.loop(groups) as group:
        here = b.add(first, group)
        places = [b.add(b.mul(own, groups), group) for own in rows]
        parts = [b.spread(b.get(sums, place, INT)) for place in places]
        for number, four in enumerate(_fours(b, b.at(held, b.mul(here, word(size)), BYTE), bits)):
            for own, place in enumerate(places):
                start = b.add(b.mul(place, word(GROUP)), word(4 * number))
                operands = parts[own], four, b.spread(b.get(values, start, BYTE, INT))
                parts[own] = b.intrinsic("llvm.x86.avx512.vpdpbusd.512", INTS, *operands)
        wide = b.zext(b.get(held_scale, b.mul(here, word(LANES)), SHORT, SHORTS), INTS)
        scale = b.bitcast(b.shl(wide, ir.Constant(INTS, [16] * LANES)), FLOATS)  # bfloat16 is half of a float32
        for part, place, total in zip(parts, places, totals, strict=True):
            scaled = b.fmul(b.sitofp(part, FLOATS), b.spread(b.get(scales, place, FLOAT)))
            b.store(b.intrinsic("llvm.fma.v16f32", FLOATS, scaled, scale, b.load(total, typ=FLOATS)), total)
    for own, total in zip(rows, totals, strict=True):
        b.put(b.load(total, typ=FLOATS), out, b.add(b.mul(own, columns), b.mul(strip, word(LANES))), FLOAT)


def _fours(b: Emitter, base: Any, bits: int) -> Iterator[Any]:
    """The registers of a strip's group, each with four rows of 16 columns. Of 4 bits, two lie in one register, the
    first in the low halves of its bytes."""
    high = ir.Constant(INTS, [0xF0F0F0F0 - (1 << 32)] * LANES)
    for number in range(FOURS * bits // 8):
        held = b.get(base, word(64 * number), BYTE, INTS)
        if bits == 8:
            yield held
        else:
            yield b.and_(b.shl(held, ir.Constant(INTS, [4] * LANES)), high)
            yield b.and_(held, high)


def runs_here() -> bool:
    """Whether this machine's processor has the instructions."""
    return has_features("avx512f", "avx512bw", "avx512vl", "avx512vnni")


@functools.cache
def handler() -> Any:
    """The handler, compiled for this machine, as `jax.ffi.register_ffi_target` takes it."""
    module = ir.Module("products of integers")
    round_rows = _round(module)
    strips = {bits: add_strips(module, f"strips{bits}", functools.partial(_block, bits)) for bits in (4, 8)}

    def rounded(b: Emitter, rows: Any, workspace: Any, num_rows: Any, depth: Any) -> tuple[Any, Any, Any]:
        groups = b.mul(num_rows, b.udiv(depth, word(GROUP)))
        scales = b.add(workspace, b.mul(num_rows, depth))
        sums = b.add(scales, b.mul(groups, word(4)))
        b.call(round_rows, [*(b.inttoptr(address, POINTER) for address in (rows, workspace, scales, sums)), groups])
        return workspace, scales, sums

    def code(call: Call, buffer: Any) -> Any:
        b = call.emitter
        is_half = b.icmp_unsigned("==", call.size(buffer, 2), word(4))  # registers of a group, as many as bits
        of_4, of_8 = (b.ptrtoint(strips[bits], WORD) for bits in (4, 8))
        return b.select(is_half, of_4, of_8)

    add_handler(module, Kind(2, rounded, code))
    return compiled(module)
