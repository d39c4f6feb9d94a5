"""From work to seconds: networks, kernels, the schedule played through, and a run's budget."""

import numpy as np
import pytest

from lifecycle.planning.chips import CHIPS
from lifecycle.planning.collectives import Collective, MeshShape, collectives
from lifecycle.planning.estimate import Work, budget, estimate
from lifecycle.planning.hlo import Shape, parse_module
from lifecycle.planning.kernels import KernelWork, kernel_work
from lifecycle.planning.network import HOP_S, Network, Span
from lifecycle.planning.program import Kernel, Program
from lifecycle.planning.timeline import Timeline
from lifecycle.planning.topology import Topology, parse_topology
from tests.planning.programs import GOLDEN, GOLDEN_SHAPE
from tests.planning.texts import CHAIN, HANDED_OVER, STARTED, loop

GB = 10**9


def places(topology: Topology) -> np.ndarray:
    """Rows x, y, z, core, slice in the order of slices, z, y, x, core."""
    x, y, z = (*topology.shape, 1, 1)[:3]
    rows = [
        (i, j, k, core, piece)
        for piece in range(topology.num_slices)
        for k in range(z)
        for j in range(y)
        for i in range(x)
        for core in range(topology.chip.devices_per_chip)
    ]
    return np.array(rows)


def network(name: str, axes: tuple[str, ...], sizes: tuple[int, ...]) -> Network:
    topology = parse_topology(name)
    return Network(topology, MeshShape(axes, sizes, topology.num_slices), places(topology))


def gather(axes: tuple[str, ...], ways: int, payload: int = GB, kind: str = "all-gather") -> Collective:
    return Collective(kind, axes, ways, payload, 1, False, 0, (), "gather", "main", "g", None)


@pytest.mark.parametrize(
    ("name", "sizes", "axis", "span"),
    [
        ("v5p:4x4x4", (64, 1), "fsdp", Span((4, 4, 4), (True, True, True), 1, False)),
        ("v5p:4x4x4", (16, 4), "tensor", Span((4,), (True,), 1, False)),
        ("v5p:4x4x4", (16, 4), "fsdp", Span((4, 4), (True, True), 1, False)),
        ("v5p:4x4x4", (32, 2), "tensor", Span((2,), (False,), 1, False)),  # half of a ring is a line
        ("v5p:2x2x4", (16, 1), "fsdp", Span((2, 2, 4), (False, False, False), 1, False)),
        ("v6e:16x16", (256, 1), "fsdp", Span((16, 16), (True, True), 1, False)),
        ("v6e:8x16", (128, 1), "fsdp", Span((8, 16), (False, True), 1, False)),
        ("tpu7x:2x2x1", (4, 2), "tensor", Span((), (), 1, True)),  # a chip's two devices
        ("v5p:4x4x4*2", (2, 64), "fsdp", Span((), (), 2, False)),
    ],
)
def test_an_axis_spans_dimensions_that_close_only_where_it_takes_them_whole(
    name: str, sizes: tuple[int, int], axis: str, span: Span
) -> None:
    assert network(name, ("fsdp", "tensor"), sizes).span((axis,)) == span


def test_a_gather_uses_every_link_of_the_dimensions_that_it_spans() -> None:
    cube = network("v5p:4x4x4", ("fsdp", "tensor"), (16, 4))
    ring, plane = cube.seconds(gather(("tensor",), 4)), cube.seconds(gather(("fsdp",), 16))
    assert ring == pytest.approx(GB * 3 / 4 / (2 * 100e9) + 2 * HOP_S)
    assert plane == pytest.approx(GB * 15 / 16 / (4 * 100e9) + 4 * HOP_S)
    line = network("v5p:4x4x2", ("fsdp", "tensor"), (8, 4)).seconds(gather(("tensor",), 4))
    assert line == pytest.approx(GB * 3 / 4 / 100e9 + 3 * HOP_S)


def test_an_all_reduce_costs_twice_a_gather_and_an_exchange_is_bound_by_the_middle() -> None:
    ring = network("v5p:4x4x4", ("fsdp", "tensor"), (16, 4))
    once, twice = (ring.seconds(gather(("tensor",), 4, kind=kind)) for kind in ("reduce-scatter", "all-reduce"))
    assert twice == pytest.approx(2 * once)
    # 4 devices in a ring: a quarter of each payload stays, a half crosses the middle by two links each way.
    exchange = ring.seconds(gather(("tensor",), 4, kind="all-to-all"))
    assert exchange == pytest.approx(GB * 4 / 8 / 100e9 + 2 * HOP_S)


def test_between_slices_each_chip_sends_its_own_part_at_its_share_of_the_slow_network() -> None:
    two = network("v5p:4x4x4*2", ("replica", "fsdp"), (2, 64))
    chip = CHIPS["v5p"]
    assert two.seconds(gather(("replica",), 2, kind="all-reduce")) == pytest.approx(GB / chip.dcn_bytes_per_s)
    # Over both axes the 64 devices of a slice share what crosses.
    both = two.seconds(gather(("replica", "fsdp"), 128))
    inside = GB * 63 / 64 / (6 * 100e9) + 6 * HOP_S
    assert both == pytest.approx(GB / 2 / 64 / chip.dcn_bytes_per_s + inside)


def test_two_devices_of_a_chip_share_its_links_and_have_a_faster_one_between_them() -> None:
    pair = network("tpu7x:4x4x4", ("fsdp", "tensor"), (64, 2))
    assert pair.seconds(gather(("tensor",), 2)) == pytest.approx(GB / 2 / 600e9 + HOP_S)
    assert pair.seconds(gather(("fsdp",), 64)) == pytest.approx(GB * 63 / 64 / (6 * 50e9) + 6 * HOP_S)


def test_an_attention_kernels_flops_follow_its_name_and_shapes() -> None:
    q, k = Shape("bf16", (2, 32, 4096, 128)), Shape("bf16", (2, 32, 4096, 128))
    ints = Shape("s8", (1, 32, 32))
    forward = 4 * 2 * 32 * 4096 * 4096 * 128 / 2
    names = ("splash_mha_fwd_residuals", "splash_mha_dq", "splash_mha_dkv", "my_own")
    kernels = [Kernel(name, (ints, q, k, k), (q,), 3) for name in names]
    found = kernel_work(kernels, 0.5)
    assert [w.flops for w in found] == [forward, 1.5 * forward, 2 * forward, None]
    assert found[0].total_flops == 3 * forward
    flat, shared = Shape("bf16", (2, 4096, 32 * 128)), Shape("bf16", (2, 4096, 8 * 128))
    names = ("jvp_flash_fwd_", "transpose_jvp_flash_bwd__", "rotate")
    ours = kernel_work([Kernel(name, (ints, flat, shared, shared), (flat,), 1) for name in names], 0.5)
    assert [w.flops for w in ours] == [forward, 2.5 * forward, 0.0]


def test_a_grouped_products_flops_are_rows_by_both_widths() -> None:
    rows, matrices = Shape("bf16", (1024, 64)), Shape("bf16", (8, 64, 256))
    forward = Kernel("gmm", (Shape("s32", (8,)), rows, matrices), (Shape("bf16", (1024, 256)),), 1)
    turned = (Shape("bf16", (64, 1024)), Shape("bf16", (1024, 256)))
    backward = Kernel("tgmm", turned, (Shape("f32", (8, 64, 256)),), 1)
    assert [w.flops for w in kernel_work([forward, backward], 0.5)] == [2 * 1024 * 64 * 256] * 2


@pytest.mark.parametrize("text", [STARTED, CHAIN])
@pytest.mark.parametrize(("network_s", "exposed_s"), [(500e-9, 0.0), (700e-9, 0.0), (950e-9, 250e-9)])
def test_the_core_waits_for_what_its_work_does_not_hide(text: str, network_s: float, exposed_s: float) -> None:
    program = Program(parse_module(text))
    found = collectives(program, MeshShape(("fsdp", "tensor"), (4, 2)))
    times = Timeline(program, found, 1e9, {}, lambda _: network_s).run()
    assert times.exposed_s == pytest.approx(exposed_s)
    assert times.total_s == pytest.approx(800e-9 + exposed_s)
    assert times.network_s == pytest.approx(network_s)


def test_work_before_the_data_is_there_hides_nothing() -> None:
    program = Program(parse_module(HANDED_OVER))
    found = collectives(program, MeshShape(("fsdp", "tensor"), (4, 2)))
    assert Timeline(program, found, 1e9, {}, lambda _: 900e-9).run().exposed_s == pytest.approx(200e-9)


def test_loops_multiply_waits_and_kernels() -> None:
    text = loop("constant(0)", "1", "constant(5)").replace(
        "%z = f32[8,128] negate(%y)",
        '%k = f32[8,128] custom-call(%y), custom_call_target="tpu_custom_call"\n'
        "  %z = f32[8,128] all-reduce(%k), replica_groups=[4,2]<=[8], to_apply=%add",
    )
    program = Program(parse_module(text))
    found = collectives(program, MeshShape(("fsdp", "tensor"), (4, 2)))
    times = Timeline(program, found, 1e9, {"k": 3e-9}, lambda _: 7e-9).run()
    assert (times.kernel_s, times.exposed_s) == (pytest.approx(15e-9), pytest.approx(35e-9))
    assert times.compute_s == pytest.approx(5 * 50e-9)


def test_an_estimate_adds_up_and_its_budget_is_arithmetic() -> None:
    program = Program(parse_module(GOLDEN.read_text(encoding="utf-8")))
    topology = parse_topology("v5p:2x2x1")
    found = collectives(program, GOLDEN_SHAPE)
    net = Network(topology, GOLDEN_SHAPE, places(topology))
    got = estimate(program, found, [KernelWork("splash", 2, 1e9)], net, topology)
    assert got.times.kernel_s == 0.0  # no such kernel stands in the schedule
    assert got.step_s >= max(got.times.total_s, got.hbm_roofline_s, got.compute_roofline_s)
    assert got.fastest_s <= got.step_s <= got.slowest_s
    assert got.times.compute_s == pytest.approx(program.cycles * 262_144 / 459e12)  # FLOPs a cycle over the peak
    assert got.network_roofline_s == pytest.approx(sum(t.seconds for t in got.traffic))
    # Nothing here runs beside anything: all of the network is waited for.
    assert got.times.exposed_s == pytest.approx(got.network_roofline_s)
    work = Work(tokens=1000, flops=4e9, flops_full_attention=5e9, runs=7200)
    made = budget(got, topology, work)
    assert made.tokens_per_s * got.step_s == pytest.approx(1000)
    assert made.mfu == pytest.approx(4e9 / got.step_s / (4 * 459e12))
    assert made.mfu_full_attention == pytest.approx(1.25 * made.mfu)
    assert made.days * 86400 == pytest.approx(7200 * got.step_s)
    assert made.money == pytest.approx(made.days * 24 * 4 * 4.20)
    assert made.recompute_overhead == pytest.approx(4 * (got.matmul_flops + 2e9) / 4e9 - 1)


def test_every_chip_has_sources_and_a_clock_that_its_matrix_units_allow() -> None:
    for chip in CHIPS.values():
        assert "http" in chip.sources or ".com" in chip.sources or ".io" in chip.sources
        assert chip.is_tpu == (chip.clock_hz is not None)
    clocks = {name: round((chip.clock_hz or 0) / 1e9, 2) for name, chip in CHIPS.items() if chip.is_tpu}
    assert clocks == {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2}
