"""From work to seconds: networks, kernels, the schedule played through, and a run's budget."""

import pytest

from lifecycle.planning.chips import CHIPS
from lifecycle.planning.compiled.collectives import Collective, collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import Shape, parse_module
from lifecycle.planning.compiled.kernels import KernelWork, kernel_work
from lifecycle.planning.compiled.prefetch import prefetches
from lifecycle.planning.compiled.program import Kernel, Program
from lifecycle.planning.compiled.timeline import Memory, Timeline
from lifecycle.planning.estimate.budget import inference_budget, training_budget
from lifecycle.planning.estimate.network import HOP_S, Network, Span
from lifecycle.planning.estimate.step import estimate_step
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.topology import parse_topology
from tests.planning.fakes import coordinates
from tests.planning.small_programs import GOLDEN, GOLDEN_SHAPE
from tests.planning.texts import CHAIN, HANDED_OVER, HEAD, STARTED, X, cycles, entry, loop

GB = 10**9


def network(name: str, axes: tuple[str, ...], sizes: tuple[int, ...]) -> Network:
    topology = parse_topology(name)
    return Network(topology, MeshShape(axes, sizes, topology.num_slices), coordinates(topology))


def gather(axes: tuple[str, ...], group_size: int, payload: int = GB, kind: str = "all-gather") -> Collective:
    return Collective(kind, axes, group_size, payload, 1, False, 0, (), "gather", "main", "g", None)


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


def test_gpus_exchange_behind_their_nodes_switch_and_between_nodes_at_their_own_rate() -> None:
    node = network("h100:8", ("fsdp", "tensor"), (2, 4))
    assert node.seconds(gather(("tensor",), 4)) == pytest.approx(GB * 3 / 4 / 450e9 + 2 * HOP_S)
    nodes = network("h100:16", ("replica", "fsdp"), (2, 8))
    within, both = nodes.seconds(gather(("fsdp",), 8)), nodes.seconds(gather(("replica", "fsdp"), 16))
    assert within == pytest.approx(GB * 7 / 8 / 450e9 + 3 * HOP_S)
    assert both == pytest.approx(within + GB / 2 / 8 / 50e9)  # each of eight sends its part of the other node's half
    assert nodes.seconds(gather(("replica",), 2, kind="all-reduce")) == pytest.approx(GB / 50e9)


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
    found = kernel_work(kernels, 0.5, is_exchanged=False)
    assert [w.flops for w in found] == [forward, 1.5 * forward, 2 * forward, None]
    assert found[0].total_flops == 3 * forward
    flat, shared = Shape("bf16", (2, 4096, 32 * 128)), Shape("bf16", (2, 4096, 8 * 128))
    names = ("flash_fwd", "flash_bwd", "rotate")
    ours = kernel_work([Kernel(name, (ints, flat, shared, shared), (flat,), 1) for name in names], 0.5, False)
    assert [w.flops for w in ours] == [forward, 2.5 * forward, 0.0]


def test_what_works_element_by_element_has_no_products_and_all_its_bytes() -> None:
    # Mixtral's on v5p: gate, up and the hidden activations' gradient, read and written over; a column beside each
    array, column = Shape("bf16", (20480, 14336)), Shape("f32", (20480, 1))
    operands = (Shape("s32", (1,)), array, array, array, column)
    (found,) = kernel_work([Kernel("gated_rows", operands, (array, array, array, column), 32)], 0.5, True)
    assert found.flops == 0.0
    assert found.hbm_bytes == 6 * 2 * 20480 * 14336 + 2 * 4 * 20480 + 4
    assert found.seconds(CHIPS["v5p"], 0.6) == pytest.approx(found.hbm_bytes / 2765e9)


def test_attention_to_pages_reads_what_its_table_names_of_one_layer() -> None:
    """64 rows with 64 pages of 128 positions each, of 32 layers in a store of 8,192 pages; 2 key heads, in 8 bits."""
    ints = [Shape("s32", dims) for dims in ((), (1,), (1024,), (1024,), (1024,), (1024,), (64 * 64,), (64,), (64,))]
    rows, store = Shape("bf16", (64, 2, 16, 128)), Shape("s8", (32, 8192, 2, 2, 128, 128))
    scale = Shape("f32", (32, 8192, 4, 128))
    (found,) = kernel_work([Kernel("paged", (*ints, rows, store, scale), (rows,), 32)], 1.0, False)
    assert found.flops == 2 * 2 * 64 * 2 * 16 * 8192 * 128
    read = 64 * 8192 * 2 * 2 * (128 + 4)
    assert found.hbm_bytes == pytest.approx(read, rel=0.01) and found.hbm_bytes > read


def test_a_grouped_products_flops_are_rows_by_both_widths() -> None:
    rows, matrices = Shape("bf16", (1024, 64)), Shape("bf16", (8, 64, 256))
    forward = Kernel("gmm", (Shape("s32", (8,)), rows, matrices), (Shape("bf16", (1024, 256)),), 1)
    turned = (Shape("bf16", (64, 1024)), Shape("bf16", (1024, 256)))
    backward = Kernel("tgmm", turned, (Shape("f32", (8, 64, 256)),), 1)
    assert [w.flops for w in kernel_work([forward, backward], 0.5, is_exchanged=False)] == [2 * 1024 * 64 * 256] * 2
    narrow = [Shape("s8", shape.dims) for shape in (rows, matrices)]
    both = [("s32", (1024, 256), narrow[1]), ("s32", (8, 64, 256), Shape("s8", (1024, 256)))]
    of_xla = [Kernel("ragged-dot-none", (narrow[0], b), (Shape(dtype, dims),), 1) for dtype, dims, b in both]
    assert [w.flops for w in kernel_work(of_xla, 0.5, is_exchanged=False)] == [2 * 1024 * 64 * 256] * 2
    # A buffer that has room for 1.25 times an even load: that load counts.
    even = [w.flops for w in kernel_work([forward, backward], 0.5, is_exchanged=True)]
    assert even == pytest.approx([2 * 1024 / 1.25 * 64 * 256] * 2)


def test_products_that_round_their_operands_have_the_rate_of_8_bits() -> None:
    chip, x, values = CHIPS["v6e"], Shape("bf16", (8192, 4096)), Shape("s8", (4096, 14336))
    out, most, scale = Shape("bf16", (8192, 14336)), Shape("f32", (8192, 128)), Shape("f32", (1, 14336))
    rows = Kernel("quantised_rows", (x, values, scale), (out, most), 2)
    operands = (Shape("s8", (8192, 4096)), Shape("f32", (8192, 1)), out)
    columns = [
        Kernel("quantised_columns", operands, (Shape("bf16", dims),), 1) for dims in ((4096, 14336), (14336, 4096))
    ]
    works = kernel_work([rows, *columns], 0.5, is_exchanged=False)
    assert [work.flops for work in works] == [2 * 8192 * 4096 * 14336] * 3
    assert works[0].seconds(chip, 0.5) == pytest.approx(2 * 2 * 8192 * 4096 * 14336 / 1836e12)
    assert works[0].seconds(chip, 0.5) == works[1].seconds(chip, 0.5) == 2 * works[2].peak_s(chip)


def test_a_kernel_takes_its_products_or_its_memory_whichever_is_longer() -> None:
    chip = CHIPS["v5p"]
    inside, outside = Shape("bf16", (4096, 4096), space=1), Shape("bf16", (4096, 4096))
    (rotation,) = kernel_work([Kernel("rotate", (inside, outside), (outside,), 7)], 0.5, False)
    assert (rotation.flops, rotation.hbm_bytes) == (0.0, 2 * 2 * 4096**2)
    assert rotation.seconds(chip, 0.6) == pytest.approx(2 * 2 * 4096**2 / 2765e9)
    assert KernelWork("gmm", 1, 4.59e12, 1e6).seconds(chip, 0.5) == pytest.approx(0.02)
    assert KernelWork("unknown", 1, None, 2765e6).seconds(chip, 0.5) == pytest.approx(1e-3)


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


@pytest.mark.parametrize(
    ("moved", "waits_s"),
    [
        (0, 0.0),  # 4,096 bytes in 41 ns beside a kernel of 30 and a negation of 20
        (2_000, 11e-9),  # 20 ns of the memory are the kernel's: 41 + 20 - 50
        (3_000, 21e-9),
    ],
)
def test_a_copy_from_memory_waits_while_a_kernel_reads(moved: int, waits_s: float) -> None:
    inside = "f32[8,128]{1,0:S(1)}"
    text = HEAD + entry(
        X,
        f"%s = ({inside}, f32[8,128]{{1,0}}, u32[]{{:S(2)}}) copy-start(%x)",
        '%k = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"',
        f"%n = f32[8,128]{{1,0}} negate(%k), {cycles(20)}",
        f"%d = {inside} copy-done(%s)",
    )
    program = Program(parse_module(text))
    (copy,) = prefetches(program)
    assert (copy.num_bytes, copy.begins, copy.ends) == (4096, "s", "d")
    times = Timeline(program, [], 1e9, {"k": 30e-9}, lambda _: 0.0, Memory(1e11, [copy], {"k": moved})).run()
    assert times.memory_exposed_s == pytest.approx(waits_s, abs=1e-9)
    assert times.total_s == pytest.approx(50e-9 + waits_s, abs=1e-9)


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
    net = Network(topology, GOLDEN_SHAPE, coordinates(topology))
    got = estimate_step(program, found, [KernelWork("splash", 2, 1e9, 0.0)], net, topology)
    assert got.times.kernel_s == 0.0  # no such kernel stands in the schedule
    assert got.step_s == got.times.total_s > got.compute_roofline_s
    assert got.fastest_s <= got.step_s <= got.slowest_s
    assert got.times.compute_s == pytest.approx(program.cycles * 262_144 / 459e12)  # FLOPs a cycle over the peak
    assert got.network_roofline_s == pytest.approx(sum(t.seconds for t in got.traffic))
    # Nothing here runs beside anything: all of the network is waited for.
    assert got.times.exposed_s == pytest.approx(got.network_roofline_s)
    work = Work(tokens=1000, flops=4e9, flops_full_attention=5e9, runs=7200)
    made = training_budget(got, topology, work)
    assert made.tokens_per_s * got.step_s == pytest.approx(1000)
    assert made.mfu == pytest.approx(4e9 / got.step_s / (4 * 459e12))
    assert made.mfu_full_attention == pytest.approx(1.25 * made.mfu)
    assert made.days * 86400 == pytest.approx(7200 * got.step_s)
    assert made.money == pytest.approx(made.days * 24 * 4 * 4.20)
    assert made.recompute_overhead == pytest.approx(4 * (got.matmul_flops + 2e9) / 4e9 - 1)


def test_memory_traffic_is_a_figure_beside_the_step_and_does_not_set_it() -> None:
    layer = f"%y = f32[8,128]{{1,0}} negate(%x), {cycles(100)}"
    program = Program(parse_module(HEAD + entry(X, layer)))
    topology = parse_topology("v5p:2x2x1")
    got = estimate_step(program, [], [], Network(topology, GOLDEN_SHAPE, coordinates(topology)), topology)
    assert got.hbm_traffic_bytes == 2 * 8 * 128 * 4
    assert got.hbm_roofline_s == pytest.approx(8192 / 2765e9)
    slow = f"%y = f32[8,128]{{1,0}} negate(%x), {cycles(1)}"
    fast = estimate_step(
        Program(parse_module(HEAD + entry(X, slow))),
        [],
        [],
        Network(topology, GOLDEN_SHAPE, coordinates(topology)),
        topology,
    )
    assert fast.hbm_roofline_s > fast.step_s == pytest.approx(262_144 / 459e12)


def test_an_inference_budget_is_tokens_time_and_money_of_one_run() -> None:
    program = Program(parse_module(HEAD + entry(X, f"%y = f32[8,128]{{1,0}} negate(%x), {cycles(1_502_990)}")))
    topology = parse_topology("v5e:1x1")
    one = Network(topology, MeshShape(("fsdp",), (1,)), coordinates(topology))
    got = estimate_step(program, [], [], one, topology)
    assert got.step_s == pytest.approx(1e-3, rel=1e-5)  # at 1.503 GHz
    work, known = Work(tokens=8, flops=197e6, flops_full_attention=2e8, runs=1), {"parameters": 409, "cache": 410}
    made = inference_budget(got, topology, work, {name: size * 10**6 // 2 for name, size in known.items()}, 1)
    assert made.tokens_per_s == pytest.approx(8000, rel=1e-5)
    assert (made.tokens_per_run, made.ms_per_run) == (8, pytest.approx(1.0, rel=1e-5))
    assert made.mfu == pytest.approx(1e-3, rel=1e-5)
    assert made.usd_per_million_tokens == pytest.approx(1e6 / 8000 / 3600 * 1.20, rel=1e-5)
    # 819 MB at 819 GB/s would be the whole millisecond; an embedding's table is held and not read
    assert made.hbm_share == pytest.approx(0.5, rel=1e-5)
    held = inference_budget(got, topology, work, {"parameters": 100, "embedding": 50, "cache": 10}, 1)
    assert (held.weights_bytes, held.cache_bytes, held.floor_s) == (150, 10, pytest.approx(110 / 819e9))
    many = inference_budget(got, parse_topology("v5e:2x4"), work, {"parameters": 1, "cache": 1}, 8)
    assert many.tokens_per_s_per_chip == pytest.approx(1000, rel=1e-5)
    assert many.mfu == pytest.approx(made.mfu / 8)
    assert many.usd_per_million_tokens == pytest.approx(8 * (made.usd_per_million_tokens or 0))


def test_the_engine_is_planned_on_one_of_a_chips_two_devices() -> None:
    program = Program(parse_module(HEAD + entry(X, f"%y = f32[8,128]{{1,0}} negate(%x), {cycles(1000)}")))
    topology = parse_topology("tpu7x:1x1x1")
    one = Network(topology, MeshShape(("fsdp",), (1,)), coordinates(topology)[:1])
    got = estimate_step(program, [], [], one, topology)
    work = Work(tokens=8, flops=2e9, flops_full_attention=2e9, runs=1)
    made = inference_budget(got, topology, work, {"parameters": 1, "cache": 1}, 1)
    assert made.model_flops == 2e9
    assert made.usd_per_million_tokens == pytest.approx(6.00 / 3600 / (8 / got.step_s) * 1e6)
    assert made.mfu == pytest.approx(2e9 / got.step_s / topology.chip.bf16_flops)


def test_what_an_estimate_leaves_out_is_said_by_name() -> None:
    text = loop("constant(0)", "1", 'custom-call(), custom_call_target="Length"')
    marked = text.replace("body=%body", 'body=%body, metadata={op_name="jit(step)/seldom/while"}')
    branches = "".join(
        f"%b{n} (p: f32[8,128]) -> f32[8,128] {{\n  %p = f32[8,128]{{1,0}} parameter(0)\n"
        f"  ROOT %r = f32[8,128]{{1,0}} negate(%p), {cycles(n)}\n}}\n\n"
        for n in (0, 80)
    )
    choice = '%c = f32[8,128]{1,0} conditional(%i, %x, %x), branch_computations={%b0, %b80}, metadata={op_name="a/see"}'
    kernel = '%odd.3 = f32[8,128]{1,0} custom-call(%c), custom_call_target="tpu_custom_call"'
    chosen = (
        HEAD
        + branches
        + entry(X, "%i = s32[] constant(0)", choice, kernel, f"%y = f32[8,128]{{1,0}} negate(%odd.3), {cycles(20)}")
    )
    seldom, unknown, cond = (" ".join(trusted(t)) for t in (marked, text, chosen))
    assert "count as none: w." in seldom
    assert "unknown length" not in seldom
    assert "Loops of unknown length count once: w." in unknown
    assert (
        "1 runs of conditionals (a/see) are costed at their costliest branch: 80% of the cycles, with the cheapest 0%"
        in cond
    )
    assert "count as their memory traffic: odd." in cond
    assert "memory traffic (approximate" in cond


def trusted(text: str) -> tuple[str, ...]:
    program, topology = Program(parse_module(text)), parse_topology("v5p:2x2x1")
    kernels = kernel_work(program.kernels, 0.5, is_exchanged=False)
    return estimate_step(program, [], kernels, Network(topology, GOLDEN_SHAPE, coordinates(topology)), topology).trust


def test_every_chip_has_sources_and_a_clock_that_its_matrix_units_allow() -> None:
    for chip in CHIPS.values():
        assert "http" in chip.sources or ".com" in chip.sources or ".io" in chip.sources
    clocks = {name: round(chip.clock_hz / 1e9, 2) for name, chip in CHIPS.items()}
    assert clocks == {
        "v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2, "h100": 1.83, "h200": 1.83, "a100-80": 1.41,
        "b200": 1.86,
    }  # fmt: skip
