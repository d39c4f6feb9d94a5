"""Products of int8 values on CPUs with AVX-512 VNNI: machine code made here, called by XLA's programs.

XLA's own loops widen the values, 64 products an instruction become 8 (docs/log.md, "int8 on two cores"). So LLVM
compiles four functions, once in a process: rows are rounded to 8 bits; 16 columns of a weight are multiplied with 1, 2,
4 or 8 rows at a time; a worker takes pieces of the weights until none is left; and a handler of XLA's foreign function
interface (`xla/ffi/api/c_api.h`, version 0.1, whose structs the numbers here are words of) starts workers on XLA's
threads. The handler is `handler(rows [N, D], values, scale, values, scale, ...) -> (out [N, F], ..., workspace)`; the
layout of the values is `kernels/packed.py`'s.

`vpdpbusd` multiplies unsigned by signed bytes, so the weights are stored with 128 added, and 128 times the sum of a
row's values is subtracted again: an exact integer. What must hold: results are `quantised_linear`'s, bit for bit.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from lifecycle.kernels.quantised import SMALLEST

LANES = 16  # int32 sums in a register: columns of a strip, and the least multiple of all sizes
STRIPS = 4  # that a worker takes at a time: 37 kB of a weight of 576 rows
TILES = {1: 4, 2: 2, 4: 2, 8: 1}  # rows at a time, and for each the independent sums, which hide the latency of 4

BYTE, INT, WORD, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER, NOTHING = ir.PointerType(), ir.VoidType()
BYTES, INTS, FLOATS = (ir.VectorType(kind, LANES) for kind in (BYTE, INT, FLOAT))
ZEROS = ir.Constant(INTS, [0] * LANES)

# Words of the record that a product's workers share, then `OF_WEIGHT` words for each weight.
NEXT, DONE, HOLDERS, PIECES, NUM_WEIGHTS, STRIPS_CODE, ROWS, DEPTH, VALUES, SCALES, SUMS, WEIGHTS = range(12)
# Words of XLA's structs: a call frame's arguments and results (the word two before is their number), a buffer's address
# and sizes, and the functions of its interface that start a task on a thread and count the threads.
ARGUMENTS, RESULTS, DATA, DIMS, SCHEDULE, NUM_THREADS = 9, 14, 3, 5, 17, 18
OF_WEIGHT = 5  # address of values, of scales and of the product; columns; pieces up to and with this weight


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
    """Each row of `[rows, depth]` as int8 values, their scale and their sum; as `quantise`."""
    b, (x, values, scales, sums, rows, depth) = Emitter.of(module, "round", NOTHING, *[POINTER] * 4, WORD, WORD)
    everything, nearest = ir.Constant(ir.IntType(16), -1), ir.Constant(INT, 4)
    with b.loop(rows) as row:
        first = b.mul(row, depth)
        most, total = b.variable(INTS, ZEROS), b.variable(INTS, ZEROS)
        with b.loop(depth, LANES) as column:
            # magnitudes of floats are ordered as their bits are, and those that are not finite are the largest
            bits = b.and_(b.get(x, b.add(first, column), FLOAT, INTS), ir.Constant(INTS, [0x7FFFFFFF] * LANES))
            b.store(b.intrinsic("llvm.umax.v16i32", INTS, b.load(most, typ=INTS), bits), most)
        largest = b.bitcast(b.intrinsic("llvm.vector.reduce.umax.v16i32", INT, b.load(most, typ=INTS)), FLOAT)
        is_small = b.fcmp_ordered("<", largest, ir.Constant(FLOAT, SMALLEST))
        largest = b.select(is_small, ir.Constant(FLOAT, 1.0), largest)
        factor = b.spread(b.fdiv(ir.Constant(FLOAT, 127.0), largest))
        b.put(b.fdiv(largest, ir.Constant(FLOAT, 127.0)), scales, row, FLOAT)
        with b.loop(depth, LANES) as column:
            place = b.add(first, column)
            scaled = b.fmul(b.get(x, place, FLOAT, FLOATS), factor)
            rounding = [scaled, ZEROS, everything, nearest]
            whole = b.intrinsic("llvm.x86.avx512.mask.cvtps2dq.512", INTS, *rounding)
            b.store(b.add(b.load(total, typ=INTS), whole), total)
            b.put(b.trunc(whole, BYTES), values, place, BYTE)
        b.put(b.intrinsic("llvm.vector.reduce.add.v16i32", INT, b.load(total, typ=INTS)), sums, row, INT)
    b.ret_void()
    return b.function


def _strips(module: ir.Module, height: int, unrolled: int) -> Any:
    """Strips `begin` to `end` of the product with a weight, `height` rows at a time."""
    b, (record, weight, begin, end) = Emitter.of(module, f"strips{height}", NOTHING, POINTER, POINTER, WORD, WORD)
    values, scales, sums = (b.pointer(record, known) for known in (VALUES, SCALES, SUMS))
    rows, depth = b.get(record, ROWS), b.get(record, DEPTH)
    held, held_scale, out = (b.pointer(weight, known) for known in range(3))
    columns = b.get(weight, 3)
    with b.loop(end, start=begin) as strip:
        of_strip = b.at(held, b.mul(strip, b.mul(depth, word(LANES))), BYTE)
        first = b.mul(strip, word(LANES))
        scale = b.get(held_scale, first, FLOAT, FLOATS)
        with b.loop(rows, height) as row:
            places = [b.add(row, word(below)) for below in range(height)]
            totals = [[b.variable(INTS, ZEROS) for _ in range(unrolled)] for _ in places]
            with b.loop(depth, 4 * unrolled) as start:
                for number in range(unrolled):
                    place = b.add(start, word(4 * number))
                    fours = b.get(of_strip, b.mul(place, word(LANES)), BYTE, INTS)
                    for own, total in zip(places, totals, strict=True):
                        four = b.spread(b.get(values, b.add(b.mul(own, depth), place), BYTE, INT))
                        operands = b.load(total[number], typ=INTS), fours, four
                        b.store(b.intrinsic("llvm.x86.avx512.vpdpbusd.512", INTS, *operands), total[number])
            for own, total in zip(places, totals, strict=True):
                whole = functools.reduce(b.add, [b.load(part, typ=INTS) for part in total])
                whole = b.sub(whole, b.spread(b.shl(b.get(sums, own, INT), ir.Constant(INT, 7))))
                exact = b.sitofp(whole, FLOATS)
                scaled = b.fmul(b.fmul(exact, b.spread(b.get(scales, own, FLOAT))), scale)
                b.put(scaled, out, b.add(b.mul(own, columns), first), FLOAT)
    b.ret_void()
    return b.function


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
            b.call_at(b.get(record, STRIPS_CODE), NOTHING, record, weight, begin, end)
        b.store(last, before)
    b.count(record, DONE, 1)
    b.branch(take)
    b.position_at_end(after)
    b.leave(record)
    b.ret_void()
    return b.function


def _handler(module: ir.Module, round_rows: Any, strips: dict[int, Any], worker: Any) -> None:
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
    b.call(round_rows, [rows, *rounded, b.get(record, ROWS), b.get(record, DEPTH)])
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


def _record(b: Emitter, frame: Any, strips: dict[int, Any]) -> Any:
    """The record of a call: held by the caller, its own worker, and one for each of the other threads.

    A worker that starts late finds no piece left; it may end after the call, so whoever leaves last frees the record.
    """
    arguments, results = b.pointer(frame, ARGUMENTS), b.pointer(frame, RESULTS)
    dims = b.pointer(b.pointer(arguments, 0), DIMS)
    rows, depth = b.get(dims, 0), b.get(dims, 1)
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
        buffers = (b.pointer(arguments, b.add(place, word(after))) for after in (1, 2))
        data = [b.get(buffer, DATA) for buffer in (*buffers, out)]
        for known, value in enumerate((*data, columns, b.load(pieces, typ=WORD))):
            b.put(value, weight, known)
    workspace = b.get(b.pointer(results, num_weights), DATA)
    scales = b.add(workspace, b.mul(rows, depth))
    threads = b.variable(WORD, word(1))
    request = b.request(word(32), word(0), b.get(frame, 3), b.ptrtoint(threads, WORD))
    b.call_at(b.get(b.pointer(frame, 2), NUM_THREADS), POINTER, request)
    helpers = b.sub(b.intrinsic("llvm.umin.i64", WORD, b.load(threads, typ=WORD), b.load(pieces, typ=WORD)), word(1))
    known = {
        NEXT: word(0), DONE: word(0), HOLDERS: b.add(helpers, word(2)), PIECES: b.load(pieces, typ=WORD),
        NUM_WEIGHTS: num_weights, STRIPS_CODE: _of_height(b, strips, rows), ROWS: rows, DEPTH: depth,
        VALUES: workspace, SCALES: scales, SUMS: b.add(scales, b.mul(rows, word(4))),
    }  # fmt: skip
    for place, value in known.items():
        b.put(value, record, place)
    return record


def _of_height(b: Emitter, strips: dict[int, Any], rows: Any) -> Any:
    """The code for the largest height that divides the rows."""
    code = word(0)
    for height, function in sorted(strips.items()):
        fits = b.icmp_unsigned("==", b.urem(rows, word(height)), word(0))
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
    module = ir.Module("int8 products")
    module.triple = llvm.get_process_triple()
    strips = {height: _strips(module, height, unrolled) for height, unrolled in TILES.items()}
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
