"""Products of int8 and int4 values on CPUs with AVX-512 VNNI: machine code made here, called by XLA's programs.

XLA's own loops widen the values, 64 products an instruction become 8 (docs/log.md, "int8 on two cores"). So LLVM
compiles these functions, once in a process: rows are rounded to 8 bits in groups of 32; 16 columns of a weight are
multiplied with 1, 2, 4 or 8 rows at a time; a worker takes pieces of the weights until none is left; and a handler of
XLA's foreign function interface (`xla/ffi/api/c_api.h`, version 0.1, whose structs the numbers here are words of)
starts workers on XLA's threads. The handler is `handler(rows [N, D], values, scale, values, scale, ...) -> (out [N, F],
..., workspace)`; the layout of values and scales is `kernels/packed.py`'s.

`vpdpbusd` multiplies unsigned by signed bytes, so the weights are stored with 128 added, and a group's sum begins at
-128 times the sum of the row's values: an exact integer. Values of 4 bits become bytes in registers, 16 times as large.
What must hold: a row's result does not depend on the other rows; every height adds a row's groups in the same order.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from lifecycle.kernels.quantised import GROUP, SMALLEST

LANES = 16  # int32 sums in a register: columns of a strip
FOURS = GROUP // 4  # registers of a group's bytes
STRIPS = 4  # that a worker takes at a time: 39 kB of a weight of 576 rows in 8 bits
HEIGHTS = (1, 2, 4, 8)  # rows at a time

BYTE, SHORT, INT, WORD, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER, NOTHING = ir.PointerType(), ir.VoidType()
BYTES, SHORTS, INTS, FLOATS = (ir.VectorType(kind, LANES) for kind in (BYTE, SHORT, INT, FLOAT))
ZEROS = ir.Constant(INTS, [0] * LANES)

# Words of the record that a product's workers share, then `OF_WEIGHT` words for each weight.
NEXT, DONE, HOLDERS, PIECES, NUM_WEIGHTS, ROWS, GROUPS, VALUES, SCALES, SUMS, WEIGHTS = range(11)
# Words of XLA's structs: a call frame's arguments and results (the word two before is their number), a buffer's address
# and sizes, and the functions of its interface that start a task on a thread and count the threads.
ARGUMENTS, RESULTS, DATA, DIMS, SCHEDULE, NUM_THREADS = 9, 14, 3, 5, 17, 18
OF_WEIGHT = 6  # address of values, of scales and of the product; columns; pieces up to and with this weight; its code


type Strips = dict[tuple[int, int], Any]  # the code of strips by rows at a time and bits of a value


class Emitter(ir.IRBuilder):
    """LLVM instructions of one function."""

    @classmethod
    def of(cls, module: ir.Module, name: str, result: Any, *arguments: Any) -> tuple["Emitter", Any]:
        """A new function and its arguments."""
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        return cls(function.append_basic_block()), function.args

    def at(self, base: Any, index: Any, kind: Any = WORD) -> Any:
        """The address of an element."""
        return self.gep(base, [word(index)], source_etype=kind)

    def get(self, base: Any, index: Any, kind: Any = WORD, held: Any = None) -> Any:
        """The element at an index of `kind`s, or what begins there, a `held`."""
        address = self.at(base, index, kind)
        return self.load(address, typ=held or kind, align=1 if held else None)

    def put(self, value: Any, base: Any, index: Any, kind: Any = WORD) -> None:
        """Stores a value at an index of `kind`s."""
        self.store(value, self.at(base, index, kind), align=1 if isinstance(value.type, ir.VectorType) else None)

    def pointer(self, base: Any, index: Any) -> Any:
        """The pointer in a word."""
        return self.get(base, index, WORD, POINTER)

    def spread(self, value: Any) -> Any:
        """A number in all lanes."""
        kind = ir.VectorType(value.type, LANES)
        one = self.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT, 0))
        return self.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ZEROS)

    def intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        """A call of an instruction, or a function of the C library, by name."""
        kinds = [argument.type for argument in arguments]
        known = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return self.call(known, arguments)

    def call_at(self, address: Any, result: Any, *arguments: Any) -> Any:
        """A call of the function at an address, a word."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.call(self.inttoptr(address, kind.as_pointer()), arguments)

    def variable(self, kind: Any, value: Any) -> Any:
        """A place on the stack, which the optimizer makes a register."""
        with self.goto_entry_block():
            place = self.alloca(kind)
        self.store(value, place)
        return place

    def request(self, *words: Any) -> Any:
        """A struct of words on the stack."""
        place = self.alloca(WORD, size=len(words))
        for number, value in enumerate(words):
            self.put(value, place, number)
        return place

    @contextmanager
    def loop(self, end: Any, step: int = 1, start: Any = 0) -> Iterator[Any]:
        """Repeats the body for each number."""
        place = self.variable(WORD, word(start))
        head, body, after = (self.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        number = self.load(place, typ=WORD)
        self.cbranch(self.icmp_unsigned("<", number, word(end)), body, after)
        self.position_at_end(body)
        yield number
        self.store(self.add(number, word(step)), place)
        self.branch(head)
        self.position_at_end(after)

    def count(self, record: Any, index: int, by: int) -> Any:
        """Adds to a word that workers share; what it was before."""
        return self.atomic_rmw("add", self.at(record, index), word(by), "seq_cst")

    def leave(self, record: Any) -> None:
        """Frees the record if no other worker holds it."""
        with self.if_then(self.icmp_unsigned("==", self.count(record, HOLDERS, -1), word(1))):
            self.intrinsic("free", NOTHING, record)


def word(value: Any) -> Any:
    """A 64-bit constant; what is computed already, unchanged."""
    return ir.Constant(WORD, value) if isinstance(value, int) else value


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


def _strips(module: ir.Module, height: int, bits: int) -> Any:
    """Strips `begin` to `end` of the product with a weight, `height` rows at a time."""
    b, (record, weight, begin, end) = Emitter.of(
        module, f"strips{height}of{bits}", NOTHING, *[POINTER] * 2, *[WORD] * 2
    )
    values, scales, sums = (b.pointer(record, known) for known in (VALUES, SCALES, SUMS))
    rows, groups = b.get(record, ROWS), b.get(record, GROUPS)
    held, held_scale, out = (b.pointer(weight, known) for known in range(3))
    columns, size = b.get(weight, 3), LANES * GROUP * bits // 8
    with b.loop(end, start=begin) as strip, b.loop(rows, height) as row:
        first = b.mul(strip, groups)
        totals = [b.variable(FLOATS, ir.Constant(FLOATS, [0.0] * LANES)) for _ in range(height)]
        with b.loop(groups) as group:
            here = b.add(first, group)
            places = [b.add(b.mul(b.add(row, word(below)), groups), group) for below in range(height)]
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
        for below, total in enumerate(totals):
            place = b.add(b.mul(b.add(row, word(below)), columns), b.mul(strip, word(LANES)))
            b.put(b.load(total, typ=FLOATS), out, place, FLOAT)
    b.ret_void()
    return b.function


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
        first, last = b.load(before, typ=WORD), b.get(weight, 4)
        is_its = b.and_(b.icmp_unsigned(">=", piece, first), b.icmp_unsigned("<", piece, last))
        with b.if_then(is_its):
            begin = b.mul(b.sub(piece, first), word(STRIPS))
            end, all_strips = b.add(begin, word(STRIPS)), b.udiv(b.get(weight, 3), word(LANES))
            end = b.select(b.icmp_unsigned("<", end, all_strips), end, all_strips)
            b.call_at(b.get(weight, 5), NOTHING, record, weight, begin, end)
        b.store(last, before)
    b.count(record, DONE, 1)
    b.branch(take)
    b.position_at_end(after)
    b.leave(record)
    b.ret_void()
    return b.function


def _handler(module: ir.Module, round_rows: Any, strips: Strips, worker: Any) -> None:
    """What XLA calls: first to ask for the version of its interface, then for each product."""
    b, (frame,) = Emitter.of(module, "handler", POINTER, POINTER)
    extension, nothing = b.pointer(frame, 1), ir.Constant(POINTER, None)
    with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(extension, WORD), word(0))):
        metadata = b.pointer(extension, 3)
        for place, number in ((6, 0), (7, 1), (8, 0)):  # version 0.1, no traits
            b.put(ir.Constant(INT, number), metadata, place, INT)
        b.ret(nothing)
        b.position_at_end(b.append_basic_block())
    record = _record(b, frame, strips)
    rounded = (b.pointer(record, known) for known in (VALUES, SCALES, SUMS))
    rows = b.pointer(b.pointer(b.pointer(frame, ARGUMENTS), 0), DATA)
    b.call(round_rows, [rows, *rounded, b.mul(b.get(record, ROWS), b.get(record, GROUPS))])
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
    b.leave(record)
    b.ret(nothing)


def _record(b: Emitter, frame: Any, strips: Strips) -> Any:
    """The record of a call: held by the caller, its own worker, and one for each of the other threads.

    A worker that starts late finds no piece left; it may end after the call, so whoever leaves last frees the record.
    """
    arguments, results = b.pointer(frame, ARGUMENTS), b.pointer(frame, RESULTS)
    dims = b.pointer(b.pointer(arguments, 0), DIMS)
    rows, depth = b.get(dims, 0), b.get(dims, 1)
    all_groups = b.mul(rows, b.udiv(depth, word(GROUP)))
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
        place = b.mul(number, word(2))
        buffers = [b.pointer(arguments, b.add(place, word(after))) for after in (1, 2)]
        data = [b.get(buffer, DATA) for buffer in (*buffers, out)]
        bits = b.get(b.pointer(buffers[0], DIMS), 2)  # of a value: registers of a group
        for known, value in enumerate((*data, columns, b.load(pieces, typ=WORD), _code(b, strips, rows, bits))):
            b.put(value, weight, known)
    workspace = b.get(b.pointer(results, num_weights), DATA)
    scales = b.add(workspace, b.mul(rows, depth))
    threads = b.variable(WORD, word(1))
    request = b.request(word(32), word(0), b.get(frame, 3), b.ptrtoint(threads, WORD))
    b.call_at(b.get(b.pointer(frame, 2), NUM_THREADS), POINTER, request)
    helpers = b.sub(b.intrinsic("llvm.umin.i64", WORD, b.load(threads, typ=WORD), b.load(pieces, typ=WORD)), word(1))
    known = {
        NEXT: word(0), DONE: word(0), HOLDERS: b.add(helpers, word(2)), PIECES: b.load(pieces, typ=WORD),
        NUM_WEIGHTS: num_weights, ROWS: rows, GROUPS: b.udiv(depth, word(GROUP)),
        VALUES: workspace, SCALES: scales, SUMS: b.add(scales, b.mul(all_groups, word(4))),
    }  # fmt: skip
    for place, value in known.items():
        b.put(value, record, place)
    return record


def _code(b: Emitter, strips: Strips, rows: Any, bits: Any) -> Any:
    """The code for values of `bits` and the largest height that divides the rows."""
    code = word(0)
    for (height, of_bits), function in sorted(strips.items(), key=lambda item: item[0]):
        fits = b.icmp_unsigned("==", b.urem(rows, word(height)), word(0))
        fits = b.and_(fits, b.icmp_unsigned("==", bits, word(of_bits)))
        code = b.select(fits, b.ptrtoint(function, WORD), code)
    return code


def has_vnni() -> bool:
    """Whether this machine's processor has the instructions."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vl", "avx512vnni"))


@functools.cache
def handler() -> Any:
    """The handler, compiled for this machine, as `jax.ffi.register_ffi_target` takes it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module("products of integers")
    module.triple = llvm.get_process_triple()
    strips = {(height, bits): _strips(module, height, bits) for height in HEIGHTS for bits in (4, 8)}
    _handler(module, _round(module), strips, _worker(module))
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features, opt=2)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(compiled, passes)
    engine = llvm.create_mcjit_compiler(compiled, machine)
    engine.finalize_object()
    _ENGINES.append(engine)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return capsule(engine.get_function_address("handler"), None, None)


_ENGINES: list[Any] = []  # own the machine code, which XLA calls until the process ends
