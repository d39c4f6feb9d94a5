"""The reading of compiled modules: a golden text from the TPU compiler and texts made by hand."""

import re

import pytest

from lifecycle.planning.compiled.flops import product_flops
from lifecycle.planning.compiled.hlo import Instruction, parse_module, read_shapes
from lifecycle.planning.compiled.names import kernel_name
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.timeline import Timeline
from lifecycle.planning.compiled.traffic import traffic
from tests.planning.small_programs import GOLDEN, GOLDEN_SHAPE, LAYERS, layers_flops
from tests.planning.texts import HEAD, READS_A_SLICE, STARTED, X, cycles, entry, loop


@pytest.fixture(scope="module")
def text() -> str:
    return GOLDEN.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program(text: str) -> Program:
    return Program(parse_module(text))


def test_every_instruction_of_the_text_is_read(text: str) -> None:
    lines = len(re.findall(r"^  (?:ROOT )?%[\w.\-]+ = ", text, re.MULTILINE))
    module = parse_module(text)
    assert sum(len(c.instructions) for c in module.computations.values()) == lines > 200
    assert module.is_scheduled
    assert module.entry.name.startswith("main")


def test_products_of_all_loops_are_counted_exactly(program: Program) -> None:
    assert program.matmul_flops == layers_flops(GOLDEN_SHAPE)


def test_loops_run_once_a_layer(program: Program) -> None:
    loops = [e for e in program.executed if e.instruction.opcode == "while"]
    assert [program.trips(e.instruction, e.within) for e in loops] == [LAYERS, LAYERS]
    assert not program.unknown_loops


def test_cycles_are_the_texts_own_times_the_loops(program: Program, text: str) -> None:
    once = sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text))
    assert once < program.cycles <= LAYERS * once
    assert program.product_cycles < program.cycles


def test_spenders_add_up_to_all_cycles(program: Program) -> None:
    found = program.spenders(most=1000)
    assert sum(s.cycles for s in found) == program.cycles
    assert {"dot_general", "dot_general recomputed", "dot_general backward"} <= {s.operation for s in found}


def test_traffic_is_at_least_the_weights_and_less_than_all_stacks_in_every_run(program: Program) -> None:
    arguments = sum(shape.num_bytes for i in program.module.entry.parameters.values() for shape in i.shapes)
    assert arguments < program.hbm_bytes
    assert program.hbm_bytes < 72e6
    # The gradients' update of a stack of six: a bfloat16 part is read, a float32 part of the stack written.
    puts = [e for e in program.executed if e.instruction.name.startswith("convert_dynamic-update-slice_fusion")]
    counted = {traffic(program.module, e.instruction, e.within) for e in puts}
    assert counted == {0, 128 * 512 * (2 + 4)}  # one of the two lies in VMEM


@pytest.mark.parametrize(
    ("type_", "sizes"),
    [
        ("f32[8,128]{1,0:T(8,128)}", [(4096, 0)]),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", [(12, 1)]),
        ("(s32[], /*index=1*/pred[7]{0}, u32[]{:S(2)})", [(4, 0), (7, 0), (4, 2)]),
        ("s4[3]{0}", [(2, 0)]),
    ],
)
def test_shapes_have_their_bytes_and_memory_space(type_: str, sizes: list[tuple[int, int]]) -> None:
    assert [(shape.num_bytes, shape.space) for shape in read_shapes(type_)] == sizes


def test_texts_that_are_no_whole_module_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the text of a compiled module"):
        parse_module("module @jit_step {")
    with pytest.raises(ValueError, match="truncated"):
        parse_module(text[: len(text) // 2])
    for line in ("%y = f32[8,128]{1,0} 7", "%y = f32[8,128]{1,0}"):
        with pytest.raises(ValueError, match=r"not an instruction: .*%y"):
            parse_module(HEAD + entry(X, line))
    with pytest.raises(ValueError, match="not an instruction:   nothing"):
        parse_module(HEAD + "ENTRY %main (x: f32[8,128]) -> f32[8,128] {\n  nothing\n}\n")


def test_a_dtype_without_a_known_size_is_an_error() -> None:
    (shape,) = read_shapes("x9[8,128]{1,0}")
    with pytest.raises(ValueError, match=r"x9\[8, 128\]: unknown dtype"):
        _ = shape.num_bytes


def test_an_attribute_with_line_breaks_and_brackets_in_quotes_is_read_whole() -> None:
    kernel = (
        '%splash_mha_fwd.3 = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"note":"a brace } in it"\n}}, metadata={op_name="a/b"}'
    )
    module = parse_module(HEAD + entry(X, kernel))
    found = Program(module).kernels
    assert [(k.name, k.calls, k.operands[0].dims) for k in found] == [("splash_mha_fwd", 1, (8, 128))]
    assert module.entry.root.attribute("metadata") == 'op_name="a/b"'


@pytest.mark.parametrize(
    ("start", "step", "bound", "direction", "runs"),
    [
        ("constant(0)", "1", "constant(6)", "LT", 6),
        ("constant(2)", "3", "constant(9)", "LT", 3),
        ("constant(0)", "2", "constant(6)", "LE", 4),
        ("constant(9)", "-1", "constant(0)", "GT", 9),
        ("constant(6)", "1", "constant(6)", "LT", 0),
    ],
)
def test_trip_counts_follow_start_step_and_bound(start: str, step: str, bound: str, direction: str, runs: int) -> None:
    program = Program(parse_module(loop(start, step, bound, direction)))
    assert program.cycles == 50 * runs
    assert not program.unknown_loops


def test_a_loop_of_unknown_length_counts_once_and_is_named() -> None:
    program = Program(parse_module(loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"')))
    assert program.cycles == 50
    assert program.unknown_loops == ["w"]


def test_a_loop_that_the_model_calls_seldom_does_not_count() -> None:
    text = loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"')
    marked = text.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/transpose(jvp())/seldom/while"}')
    program = Program(parse_module(marked))
    assert program.cycles == 0 and not program.unknown_loops
    assert program.seldom_loops == ["w"]


def test_a_loop_that_the_model_says_the_most_trips_of_counts_as_many() -> None:
    text = loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"')
    marked = text.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/transpose(jvp())/at_most_16/while"}')
    program = Program(parse_module(marked))
    assert program.cycles == 50 * 16 and not program.unknown_loops
    within = text.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/at_most_16/while/body/while"}')
    assert Program(parse_module(within)).unknown_loops == ["w"]


def test_a_trip_count_that_xla_knows_is_taken() -> None:
    text = loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"')
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"11"}}')
    assert Program(parse_module(known)).cycles == 550


def test_of_a_conditional_the_costliest_branch_counts() -> None:
    branches = "".join(
        f"%b{n} (p: f32[8,128]) -> f32[8,128] {{\n  %p = f32[8,128]{{1,0}} parameter(0)\n"
        f"  ROOT %r = f32[8,128]{{1,0}} negate(%p), {cycles(n)}\n}}\n\n"
        for n in (10, 70, 30)
    )
    choice = "%c = f32[8,128]{1,0} conditional(%i, %x, %x, %x), branch_computations={%b10, %b70, %b30}"
    program = Program(parse_module(HEAD + branches + entry(X, "%i = s32[] constant(0)", choice)))
    assert program.cycles == 70
    assert [(c.runs, c.most, c.least) for c in program.choices] == [(1, 70, 10)]


@pytest.mark.parametrize("name", ["rotate", "rotate.18", "rotate.8.q", "rotate.3.clone.2", "rotate.remat"])
def test_a_kernels_name_is_without_numbers_and_what_it_makes(name: str) -> None:
    line = f'%{name} = f32[8,128]{{1,0}} custom-call(%x), custom_call_target="tpu_custom_call"'
    assert [k.name for k in Program(parse_module(HEAD + entry(X, line))).kernels] == ["rotate"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("jvp_jit_gmm__.15", "gmm"),
        ("transpose_jvp_jit_gmm___.40.d_hidden", "gmm"),
        ("transpose_jvp_jit_tgmm___.36", "tgmm"),
        ("transpose_jvp_gated_rows__.10", "gated_rows"),
        ("jvp_flash_fwd_", "flash_fwd"),
        ("jit_rows", "jit_rows"),  # its own: a transformation leaves a bracket at the end
    ],
)
def test_a_kernels_name_is_without_the_transformations_around_it(text: str, name: str) -> None:
    assert kernel_name(Instruction(text, "f32[]", "custom-call", "", "", False)) == name


def test_a_branch_with_a_kernel_counts_whatever_the_other_ones_cycles() -> None:
    kernel = '%k.3 = f32[8,128]{1,0} custom-call(%p), custom_call_target="tpu_custom_call"'
    branches = "".join(
        f"%{name} (p: f32[8,128]) -> f32[8,128] {{\n  %p = f32[8,128]{{1,0}} parameter(0)\n  {line}\n}}\n\n"
        for name, line in (
            ("plain", f"ROOT %r = f32[8,128]{{1,0}} negate(%p), {cycles(70)}"),
            ("fast", f"{kernel}\n  ROOT %r = f32[8,128]{{1,0}} negate(%k.3), {cycles(10)}"),
        )
    )
    choice = "%c = f32[8,128]{1,0} conditional(%i, %x, %x), branch_computations={%plain, %fast}"
    program = Program(parse_module(HEAD + branches + entry(X, "%i = s32[] constant(0)", choice)))
    assert [(k.name, k.calls) for k in program.kernels] == [("k", 1)]
    assert program.cycles == 10
    assert Timeline(program, [], 1e9, {"k": 5e-9}, lambda _: 0.0).run().total_s == pytest.approx(15e-9)


def test_a_kernel_that_reads_a_slice_of_a_stack_in_place_counts_with_the_slice() -> None:
    program = Program(parse_module(READS_A_SLICE))
    assert [(k.name, k.calls, [s.dims for s in k.operands]) for k in program.kernels] == [("rotate", 1, [(8, 128)])]
    assert program.cycles == 10
    assert program.hbm_bytes == 4 * 8 * 128 * 4 + 4  # the slice, what the kernel makes of it, the negation; the index
    assert Timeline(program, [], 1e9, {"rotate": 5e-9}, lambda _: 0.0).run().total_s == pytest.approx(15e-9)


def test_what_the_compiler_made_itself_goes_by_one_name_whatever_its_numbers() -> None:
    lines = (f'%n{i} = f32[8,128] negate(%x), metadata={{op_name="broadcast.{i}"}}, {cycles(5)}' for i in (17, 18))
    program = Program(parse_module(HEAD + entry(X, *lines)))
    assert [(s.operation, s.cycles, s.runs) for s in program.spenders()] == [("broadcast", 10, 2)]


def test_what_has_only_transformations_for_a_name_goes_by_what_it_is() -> None:
    line = f'%y = f32[8,128] negate(%x), metadata={{op_name="jit(decode)/while/body/cond"}}, {cycles(5)}'
    program = Program(parse_module(HEAD + entry(X, line)))
    assert [s.operation for s in program.spenders()] == ["(negate)"]


def test_kernels_in_a_loop_that_counts_as_none_are_none() -> None:
    text = loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"').replace(
        "%z = f32[8,128] negate(%y)",
        '%k = f32[8,128] custom-call(%y), custom_call_target="tpu_custom_call"\n  %z = f32[8,128] negate(%k)',
    )
    assert [k.calls for k in Program(parse_module(text)).kernels] == [1]
    marked = text.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/seldom/while"}')
    assert Program(parse_module(marked)).kernels == ()


@pytest.mark.parametrize(
    ("operands", "product", "flops"),
    [
        (
            ("f32[4,64]", "f32[64,32]"),
            "f32[4,32] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            2 * 4 * 64 * 32,
        ),
        (
            ("bf16[2,16,64]", "bf16[2,64,8]"),
            "f32[2,16,8] dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}",
            2 * 2 * 16 * 8 * 64,
        ),
        (("s8[4,64]", "s8[64,32]"), "s32[4,32] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 4 * 64 * 32),
        (("f32[4,64]", "f32[64,32]"), "f32[4,32] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 4 * 64 * 32),
        # A product summed over two rows of 16: the rows are the window.
        (
            ("f32[2,16,64]", "f32[2,16,32]"),
            "f32[64,32,1] convolution(%a, %b), window={size=2}, dim_labels=0fb_0io->bf0",
            2 * 2 * 16 * 64 * 32,
        ),
        # A batch of 5 products as a convolution: of the 5 x 5 window positions only the diagonal meets an element.
        (
            ("f32[5,4,64]", "f32[5,64,32]"),
            "f32[5,4,32] convolution(%a, %b), window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            2 * 5 * 4 * 64 * 32,
        ),
        # A three-tap filter over 10 positions with padding: 28 of 30 pairs lie inside.
        (
            ("f32[1,10,8]", "f32[3,8,16]"),
            "f32[1,10,16] convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 28 * 8 * 16,
        ),
    ],
)
def test_flops_of_products_and_the_convolutions_they_become(
    operands: tuple[str, str], product: str, flops: float
) -> None:
    text = HEAD + entry(f"%a = {operands[0]} parameter(0)", f"%b = {operands[1]} parameter(1)", f"%c = {product}")
    entry_of = parse_module(text).entry
    assert product_flops(entry_of.by_name["c"], entry_of) == flops
    assert product_flops(entry_of.by_name["c"], entry_of, is_narrow=True) == (flops if "s8" in operands[0] else 0)


def test_work_between_a_start_and_its_done_is_the_main_cores() -> None:
    assert Program(parse_module(STARTED)).cycles == 800
