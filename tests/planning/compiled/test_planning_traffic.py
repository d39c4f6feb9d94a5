"""Memory traffic of fusions: slices of stacks, wherever they are taken or written."""

import pytest

from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from tests.planning.texts import HEAD, X, entry

STACK = "%stack = f32[32,8,128]{2,1,0} parameter(0)"
INDEX = "%i = s32[] parameter(1)"
SLICE = 8 * 128 * 4  # bytes of a layer's part
WHOLE = 32 * SLICE
TAKE = "dynamic_slice_sizes={1,8,128}"


def traffic(computations: str, *lines: str) -> float:
    return Program(parse_module(HEAD + computations + entry(*lines))).hbm_bytes


def computation(name: str, *lines: str) -> str:
    body = "".join(f"  {line}\n" for line in lines[:-1]) + f"  ROOT {lines[-1]}\n"
    return f"%{name} (p: f32[]) -> f32[] {{\n{body}}}\n\n"


P_STACK, P_INDEX = "%p = f32[32,8,128]{2,1,0} parameter(0)", "%q = s32[] parameter(1)"
P_LAYER = "%l = f32[8,128]{1,0} parameter(2)"
TAKEN = f"%d = f32[1,8,128]{{2,1,0}} dynamic-slice(%p, %q), {TAKE}"
INNER_TAKE = computation("inner", P_STACK, P_INDEX, TAKEN, "%b = f32[8,128]{1,0} bitcast(%d)")
INNER_PUT = computation(
    "inner",
    P_STACK,
    P_INDEX,
    P_LAYER,
    "%n = f32[1,8,128]{2,1,0} bitcast(%l)",
    "%u = f32[32,8,128]{2,1,0} dynamic-update-slice(%p, %n, %q)",
)
READERS = {
    "a slice": computation("f", P_STACK, P_INDEX, TAKEN, "%r = f32[8,128]{1,0} bitcast(%d)"),
    "through a bitcast": computation(
        "f",
        P_STACK,
        P_INDEX,
        "%v = f32[256,128]{1,0} bitcast(%p)",
        "%r = f32[8,128]{1,0} dynamic-slice(%v, %q), dynamic_slice_sizes={8,128}",
    ),
    "elementwise before the slice": computation(
        "f",
        P_STACK,
        P_INDEX,
        "%v = f32[32,8,128]{2,1,0} negate(%p)",
        f"%d = f32[1,8,128]{{2,1,0}} dynamic-slice(%v, %q), {TAKE}",
        "%r = f32[8,128]{1,0} bitcast(%d)",
    ),
    "in a fusion inside": INNER_TAKE
    + computation("f", P_STACK, P_INDEX, "%r = f32[8,128]{1,0} fusion(%p, %q), kind=kLoop, calls=%inner"),
    "beside a sum in a tuple": computation(
        "f",
        P_STACK,
        P_INDEX,
        TAKEN,
        "%r = f32[8,128]{1,0} bitcast(%d)",
        "%s = f32[] reduce(%r), to_apply=%add",
        "%t = (f32[8,128]{1,0}, f32[]) tuple(%r, %s)",
    ),
}


@pytest.mark.parametrize("how", READERS)
def test_a_fusion_that_takes_a_slice_reads_the_slice(how: str) -> None:
    is_tuple = how.endswith("tuple")
    result = "(f32[8,128]{1,0}, f32[])" if is_tuple else "f32[8,128]{1,0}"
    got = traffic(READERS[how], STACK, INDEX, f"%y = {result} fusion(%stack, %i), kind=kLoop, calls=%f")
    index = 4  # read from HBM too
    assert got == SLICE + index + SLICE + 4 * is_tuple


def test_two_slices_of_a_stack_count_both_and_the_whole_use_counts_whole() -> None:
    two = computation("f", P_STACK, P_INDEX, TAKEN, TAKEN.replace("%d", "%e"), "%r = f32[1,8,128]{2,1,0} add(%d, %e)")
    call = "%y = f32[1,8,128]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%f"
    assert traffic(two, STACK, INDEX, call) == 2 * SLICE + 4 + SLICE
    summed = computation("f", P_STACK, P_INDEX, TAKEN, "%s = f32[] reduce(%p)", "%r = f32[1,8,128] add(%d, %s)")
    assert traffic(summed, STACK, INDEX, call) == WHOLE + 4 + SLICE


def test_a_slice_of_a_product_needs_the_whole_product_and_a_products_square_operand_is_read_whole() -> None:
    text = computation(
        "f",
        "%p = f32[128,128]{1,0} parameter(0)",
        "%c = f32[128,128]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "%r = f32[8,128]{1,0} slice(%c), slice={[0:8], [0:128]}",
    )
    square = "%w = f32[128,128]{1,0} parameter(0)"
    got = traffic(text, square, "%y = f32[8,128]{1,0} fusion(%w), kind=kOutput, calls=%f")
    assert got == 128 * 128 * 4 + 8 * 128 * 4


@pytest.mark.parametrize("how", ["the root", "through a bitcast", "in a fusion inside", "an element of a tuple"])
def test_a_slice_that_is_written_into_a_stack_is_all_that_is_written(how: str) -> None:
    put = (
        P_STACK,
        P_INDEX,
        P_LAYER,
        "%n = f32[1,8,128]{2,1,0} bitcast(%l)",
        "%u = f32[32,8,128]{2,1,0} dynamic-update-slice(%p, %n, %q)",
    )
    ends = {
        "the root": (*put,),
        "through a bitcast": (*put, "%b = f32[256,128]{1,0} bitcast(%u)"),
        "an element of a tuple": (*put, "%t = (f32[32,8,128]{2,1,0}, f32[8,128]{1,0}) tuple(%u, %l)"),
        "in a fusion inside": (
            P_STACK,
            P_INDEX,
            P_LAYER,
            "%y = f32[32,8,128]{2,1,0} fusion(%p, %q, %l), kind=kLoop, calls=%inner",
        ),
    }
    inner = INNER_PUT if how == "in a fusion inside" else ""
    result = {"an element of a tuple": "(f32[32,8,128]{2,1,0}, f32[8,128]{1,0})", "through a bitcast": "f32[256,128]"}
    layer = "%layer = f32[8,128]{1,0} parameter(2)"
    call = f"%y = {result.get(how, 'f32[32,8,128]')} fusion(%stack, %i, %layer), kind=kLoop, calls=%f"
    got = traffic(inner + computation("f", *ends[how]), STACK, INDEX, layer, call)
    assert got == SLICE + 4 + SLICE + SLICE * (how == "an element of a tuple")


def test_adding_to_a_slice_in_place_reads_and_writes_the_slice() -> None:
    added = computation(
        "f",
        P_STACK,
        P_INDEX,
        P_LAYER,
        TAKEN,
        "%n = f32[1,8,128]{2,1,0} bitcast(%l)",
        "%s = f32[1,8,128]{2,1,0} add(%d, %n)",
        "%u = f32[32,8,128]{2,1,0} dynamic-update-slice(%p, %s, %q)",
    )
    layer = "%layer = f32[8,128]{1,0} parameter(2)"
    call = "%y = f32[32,8,128]{2,1,0} fusion(%stack, %i, %layer), kind=kLoop, calls=%f"
    assert traffic(added, STACK, INDEX, layer, call) == SLICE + 4 + SLICE + SLICE


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        (f"%y = f32[1,8,128] dynamic-slice(%stack, %i), {TAKE}", 2 * SLICE),
        ("%y = f32[32,8,128] dynamic-update-slice(%stack, %layer, %i)", 2 * SLICE),
        ("%y = f32[32,8,128] negate(%stack)", 2 * WHOLE),
        ("%y = f32[32,8,128]{2,1,0:S(1)} copy(%stack)", WHOLE),  # to VMEM
        ("%y = (f32[32,8,128]{2,1,0}, f32[32,8,128]{2,1,0:S(1)}) all-gather-start(%stack), dimensions={0}", WHOLE),
        ("%y = f32[32,8,128] all-gather-done(%stack)", WHOLE),
        ('%y = f32[32,8,128] custom-call(), custom_call_target="AllocateBuffer"', 0),
        ("%y = (f32[32,8,128]{2,1,0:S(1)}, f32[32,8,128]{2,1,0}, u32[]{:S(2)}) copy-start(%stack)", WHOLE),
        ("%y = ((f32[32,8,128]{2,1,0}), f32[1,8,128]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%stack)", SLICE),
        (
            "%y = ((f32[32,8,128]{2,1,0:S(5)}, s32[]), f32[1,8,128]{2,1,0}, u32[]{:S(2)}) "
            "dynamic-slice-start(%stack, %i)",
            SLICE,
        ),
        (
            "%y = ((f32[32,8,128]{2,1,0:S(5)}, f32[1,8,128]{2,1,0}, s32[]), f32[32,8,128]{2,1,0:S(5)}, u32[]{:S(2)}) "
            "dynamic-update-slice-start(%stack, %layer, %i)",
            SLICE,
        ),
    ],
)
def test_what_stands_alone_moves_its_operands_its_result_or_the_slice(line: str, moved: int) -> None:
    layer = "%layer = f32[1,8,128]{2,1,0} parameter(2)"
    assert traffic("", X.replace("%x", "%other"), STACK, INDEX, layer, line) == moved
