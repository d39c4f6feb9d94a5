"""The reading of GPU programs, from a text made by hand: their products, kernels, traffic, collectives and time."""

import pytest

from lifecycle.parallel.axes import AXES
from lifecycle.planning.chips import CHIPS
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.kernels import kernel_work
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.roofline import NARROW_SHARE, PRODUCT_SHARE, roofline
from lifecycle.planning.compiled.timeline import Timeline
from lifecycle.planning.compiled.traffic import traffic
from tests.planning.gpu_text import BATCH, HEAD_DIM, HEADS, HIDDEN, POSITIONS, ROWS, TEXT, WIDTH

H100 = CHIPS["h100"]
PRODUCT = 2.0 * ROWS * WIDTH * HIDDEN


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(parse_module(TEXT), roofline(H100))


def cycles(program: Program, name: str) -> int:
    return program.own_cycles(program.module.entry.by_name[name], program.module.entry)


def test_products_are_those_of_tritons_fusions_and_of_cublaslt(program: Program) -> None:
    assert program.matmul_flops == 2 * PRODUCT
    assert program.narrow_flops == PRODUCT


def test_cudnns_attention_is_counted_by_its_shapes_and_in_full_where_it_knows_no_mask(program: Program) -> None:
    forward, backward = kernel_work(program.kernels, 0.5, is_exchanged=False)
    one = 2.0 * BATCH * HEADS * POSITIONS**2 * HEAD_DIM  # a product over the full square
    assert (forward.name, forward.flops) == ("fmhaSoftmax", 2 * one * 0.5)
    assert (backward.name, backward.flops) == ("fmhaSoftmaxBackward", 5 * one)


def test_an_asynchronous_copy_moves_its_slice_and_takes_none_of_the_main_streams_time(program: Program) -> None:
    start = program.module.entry.by_name["kept-start"]
    assert traffic(program.module, start, program.module.entry) == 2 * ROWS * HIDDEN * 2 + 4  # read, written; its place
    assert cycles(program, "kept-start") == cycles(program, "kept-done") == 0


def test_an_instruction_takes_its_products_or_its_traffic_whichever_is_longer(program: Program) -> None:
    moved = {"end": 2 * ROWS * HIDDEN * 4, "narrow": ROWS * WIDTH + WIDTH * HIDDEN + ROWS * HIDDEN * 4}
    for name, num_bytes in moved.items():
        assert cycles(program, name) == round(num_bytes / H100.hbm_bytes_per_s * H100.clock_hz)
    # 64 times the width, and the rows: bound by their products
    large = Program(parse_module(TEXT.replace("512", "32768").replace("[256,", "[16384,")), roofline(H100))
    assert cycles(large, "narrow") == round(64**2 * PRODUCT / (NARROW_SHARE * 1979e12) * H100.clock_hz)
    assert cycles(large, "wide") == round(64**2 * PRODUCT / (PRODUCT_SHARE * 989e12) * H100.clock_hz)
    assert cycles(program, "fwd") == cycles(program, "gather-start") == 0


def test_a_gather_is_hidden_behind_what_is_scheduled_beside_it(program: Program) -> None:
    (gather,) = collectives(program, MeshShape(AXES, (1, 1, 2, 1, 1, 2)))
    assert (gather.kind, gather.axes, gather.group_size) == ("all-gather", ("fsdp",), 2)
    assert gather.payload_bytes == WIDTH * HIDDEN * 2
    assert gather.is_overlapped and gather.overlapped_cycles == cycles(program, "narrow")
    takes = 2 * cycles(program, "narrow") / H100.clock_hz
    kernels_s = {"fmhaSoftmax": 1.0, "fmhaSoftmaxBackward": 2.0}
    times = Timeline(program, [gather], H100.clock_hz, kernels_s, lambda _: takes).run()
    assert times.exposed_s == pytest.approx(takes / 2)
    assert times.kernel_s == 3.0
    assert times.compute_s == pytest.approx(program.cycles / H100.clock_hz)


def test_the_shares_of_the_peak_that_products_reach_are_stated(program: Program) -> None:
    large = Program(parse_module(TEXT.replace("512", "32768").replace("[256,", "[16384,")), roofline(H100))
    reached = {
        name: 64**2 * PRODUCT / peak * H100.clock_hz / cycles(large, name)
        for name, peak in (("wide", H100.bf16_flops), ("narrow", H100.int8_ops or 0.0))
    }
    assert f"{reached['wide']:.0%} of the peak ({reached['narrow']:.0%} of 8-bit values)" in program.cost.source
