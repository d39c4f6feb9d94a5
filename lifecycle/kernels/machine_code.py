"""Machine code made at run time by LLVM, and called by XLA's programs on CPUs.

What is here knows no product: an emitter of instructions, and how a module becomes a handler of XLA's foreign function
interface.
"""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

LANES = 16  # floats or int32 of a register

BYTE, SHORT, INT, WORD, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER, NOTHING = ir.PointerType(), ir.VoidType()
BYTES, SHORTS, INTS, FLOATS = (ir.VectorType(kind, LANES) for kind in (BYTE, SHORT, INT, FLOAT))
ZEROS = ir.Constant(INTS, [0] * LANES)
ZERO_FLOATS = ir.Constant(FLOATS, [0.0] * LANES)
# Words of the structs of XLA's foreign function interface (`xla/ffi/api/c_api.h`, version 0.1): a call frame's
# arguments and results (the word two before is their number), and a buffer's address, number of dimensions and sizes.
ARGUMENTS, RESULTS, DATA, RANK, DIMS = 9, 14, 3, 4, 5


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

    def put_all(self, words: dict[int, Any], base: Any) -> None:
        """Stores words by their indices."""
        for place, value in words.items():
            self.put(value, base, place)

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

    def least(self, one: Any, other: Any) -> Any:
        """The smaller of two words, neither below zero."""
        return self.intrinsic("llvm.umin.i64", WORD, one, other)

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

    def room(self, size: Any) -> Any:
        """Place on the stack for so many floats, until the function returns."""
        return self.inttoptr(self.ptrtoint(self.alloca(FLOAT, size=size), WORD), POINTER)

    def request(self, *words: Any) -> Any:
        """A struct of words on the stack."""
        place = self.alloca(WORD, size=len(words))
        for number, value in enumerate(words):
            self.put(value, place, number)
        return place

    @contextmanager
    def loop(self, end: Any, step: int = 1, start: Any = 0) -> Generator[Any]:
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
        """Adds to a word that threads share; what it was before."""
        return self.atomic_rmw("add", self.at(record, index), word(by), "seq_cst")


def handler_of(module: ir.Module) -> tuple[Emitter, Any, Any]:
    """Begins the function `handler`, which XLA calls: once to ask for the version of its interface, and then with the
    frame of each call. The emitter behind the first, the frame, and what a handler returns."""
    b, (frame,) = Emitter.of(module, "handler", POINTER, POINTER)
    extension, nothing = b.pointer(frame, 1), ir.Constant(POINTER, None)
    with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(extension, WORD), word(0))):
        metadata = b.pointer(extension, 3)
        for place, number in ((6, 0), (7, 1), (8, 0)):  # version 0.1, no traits
            b.put(ir.Constant(INT, number), metadata, place, INT)
        b.ret(nothing)
        b.position_at_end(b.append_basic_block())
    return b, frame, nothing


def word(value: Any) -> Any:
    """A 64-bit constant; what is computed already, unchanged."""
    return ir.Constant(WORD, value) if isinstance(value, int) else value


def has_features(*names: str) -> bool:
    """Whether this machine's processor has these instructions."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in names)


def compiled(module: ir.Module) -> Any:
    """The module's function `handler`, compiled for this machine, as `jax.ffi.register_ffi_target` takes it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module.triple = llvm.get_process_triple()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(llvm.get_host_cpu_name(), features, opt=2)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _ENGINES.append(engine)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return capsule(engine.get_function_address("handler"), None, None)


_ENGINES: list[Any] = []  # own the machine code, which XLA calls until the process ends
