"""What a plan prints, and what it knows of a program that does not fit."""

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from lifecycle.planning.chips import CHIPS
from lifecycle.planning.compiled.kernels import KernelWork
from lifecycle.planning.compiled.memory import DeviceMemory
from lifecycle.planning.compiled.program import Spender
from lifecycle.planning.compiled.timeline import Times
from lifecycle.planning.display.program import chip_line, memory_picture, misfit, show, step_table
from lifecycle.planning.display.units import flops, gigabytes
from lifecycle.planning.estimate.budget import InferenceBudget, TrainingBudget
from lifecycle.planning.estimate.step import StepEstimate, TrafficTotal
from lifecycle.planning.programs.lowering import Kind
from lifecycle.planning.programs.plan import ProgramPlan

GB = 10**9
TIMES = Times(compute_s=1.0, kernel_s=0.3, exposed_s=0.1, network_s=0.4, host_exposed_s=0.05, host_s=0.5)
ESTIMATE = StepEstimate(
    cycles=2_000_000,
    product_cycles=1_500_000,
    matmul_flops=737e12,
    narrow_flops=0.0,
    kernels=(
        KernelWork("rotate", 32, 0.0, 0.2e9),
        KernelWork("rotate", 32, 0.0, 0.1e9),
        KernelWork("odd", 2, None, 1e9),
    ),
    hbm_traffic_bytes=795e9,
    traffic=(
        TrafficTotal("all-gather", ("fsdp",), 4, 29 * GB, 0, 0.05),
        TrafficTotal("to host", ("host",), 2, 8 * GB, 8 * GB, 0.5),
    ),
    compute_roofline_s=1.2,
    hbm_roofline_s=0.287,
    network_roofline_s=0.05,
    times=TIMES,
    step_s=TIMES.total_s,
    fastest_s=1.3,
    slowest_s=2.0,
    trust=("a [bracket] is no markup",),
    host_roofline_s=0.5,
)
TRAINING = TrainingBudget(800e12, 0.021, 1e6, 15625.0, 0.79, 0.89, 10**9, 5.13, 33111.0)
MEMORY = DeviceMemory(3 * GB, 6 * GB, 0, GB, 10 * GB, 20 * GB, 0, CHIPS["v5p"].hbm_bytes, 17 * GB)
PLAN = ProgramPlan(
    "v5p:4x4x4", {"fsdp": 64, "tensor": 1}, "pretrain", "train.pretrain", {"limit": "65536"}, {}, True, 20 * GB, MEMORY,
    ESTIMATE, (Spender("dot_general backward", True, 1_500_000, 32),), 97.0, TRAINING, {},
)  # fmt: skip


def printed(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(what)
    return console.export_text()


def shown(plan: ProgramPlan) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    show(plan, console)
    return console.export_text()


def test_a_program_that_needs_more_than_a_process_takes_by_default_says_what_to_set() -> None:
    gpu = replace(MEMORY, hbm_bytes=25 * GB, usable_share=0.75)
    text = printed(memory_picture(gpu))
    assert row(text, "what JAX takes") == (
        "what JAX takes 75% set XLA_PYTHON_CLIENT_MEM_FRACTION=0.85 in the job's environment"
    )
    gpu = replace(gpu, highest_share=0.95)
    for share, verdict in ((0.94, "fits"), (0.96, "does not fit"), (1.01, "does not fit")):
        near = replace(gpu, hbm_bytes=round(gpu.peak_bytes / share))
        text = printed(memory_picture(near))
        assert row(text, verdict).endswith("of which a process takes 95% at most")
        assert near.fits == ("MEM_FRACTION=0.95" in text) == (verdict == "fits")
    for enough in (replace(gpu, hbm_bytes=30 * GB), replace(gpu, hbm_bytes=19 * GB), MEMORY):
        assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in printed(memory_picture(enough))


def row(text: str, begins: str) -> str:
    """The line that begins so; exactly one does."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(begins)]
    return " ".join(line.split())


def test_a_plan_shows_what_it_is_for_its_memory_its_work_and_what_it_means() -> None:
    text = shown(PLAN)
    assert "pretrain on v5p:4x4x4, mesh fsdp=64\ncompiled in 97 s, limit=65536" in text
    assert "tensor=1" not in text
    assert row(text, "parameters") == "parameters 3.00 GB 2.9%"
    assert row(text, "peak ") == "peak 20.00 GB 19.5%"
    assert row(text, "of its host's memory") == "of its host's memory 17.00 GB"
    assert row(text, "compute cycles") == "compute cycles 2 M 75% in matrix products; the compiler's estimate"
    assert row(text, "kernel rotate").startswith("kernel rotate no products 64 calls, 9.60 GB")
    assert row(text, "kernel odd").startswith("kernel odd unknown 2 calls, 2.00 GB")
    assert row(text, "recomputation").startswith("recomputation 2.1%")
    assert row(text, "all-gather") == "all-gather fsdp 4 29.00 GB 0% 50.00 ms"
    assert row(text, "to host") == "to host host 2 8.00 GB 100% 500.00 ms"
    assert row(text, "waiting for the network") == "waiting for the network 100.00 ms of 400.00 ms busy"
    assert row(text, "waiting for the host") == "waiting for the host 50.00 ms of 500.00 ms of copies"
    assert row(text, "step ") == "step 1,450.00 ms between 1,300.00 ms and 2,000.00 ms"
    assert row(text, "MFU").startswith("MFU 79.0%")
    assert row(text, "the run") == "the run 5.13 days 1,000,000,000 tokens; 33,111 USD at the list price"
    assert row(text, "dot_general backward") == "dot_general backward product 1.5 M 75.0%"
    assert "- a [bracket] is no markup" in text


def test_the_bar_is_as_full_as_the_memory() -> None:
    bar = next(line for line in shown(replace(PLAN, budget=None)).splitlines() if "█" in line)
    full, free = bar.count("█"), bar.count("░")
    assert full == round(60 * 3 / 102.8) + round(60 * 6 / 102.8) + round(60 * 1 / 102.8) + round(60 * 10 / 102.8)
    assert full + free == 60


def test_a_roofline_above_the_step_says_so() -> None:
    assert "above" not in printed(step_table(ESTIMATE, None))
    text = printed(step_table(replace(ESTIMATE, hbm_roofline_s=2.0), None))
    assert row(text, "roofline: memory").endswith("at the memory's rate: above the expected step")
    assert "roofline: host" in text
    nothing = replace(ESTIMATE, host_roofline_s=0.0)
    assert "host" not in printed(step_table(nothing, None))


@pytest.mark.parametrize(("program", "kind"), [("prefill", "prompt tokens"), ("decode", "tokens")])
def test_the_engines_programs_show_tokens_time_and_money(program: Kind, kind: str) -> None:
    budget = InferenceBudget(3e9, 8, 12345.0, 772.0, 0.648, 0.123, 2 * GB, GB, 0.324e-3, 0.027)
    text = shown(replace(PLAN, program=program, kind=program, section="serve", budget=budget))
    assert row(text, f"{kind}/s").startswith(f"{kind}/s 12,345")
    assert "772 per chip" in row(text, f"{kind}/s")
    if program == "decode":
        assert row(text, "floor: memory").startswith(
            "floor: memory 0.32 ms 2.00 GB of weights in use, 1.00 GB of cache"
        )
        assert row(text, "of the memory's rate").startswith("of the memory's rate 50.0%")
    assert ("floor" in text) == (program == "decode")
    assert row(text, "ms a").startswith("ms a chunk 0.648 ms" if program == "prefill" else "ms a token 0.648 ms")
    assert row(text, f"10^6 {kind}").startswith(f"10^6 {kind} 0.0270 USD")
    assert row(text, "the model's own").startswith("the model's own 3.00 GFLOP")
    assert "recomputation" not in text
    assert "no price known" in printed(step_table(ESTIMATE, replace(budget, usd_per_million_tokens=None)))


def test_the_chips_figures_stand_above_everything() -> None:
    line = chip_line(CHIPS["v5p"])
    for figure in (
        "102.79 GB at 2,765 GB/s",
        "459.0 TFLOP/s in bfloat16",
        "int8 918 TOP/s",
        "6 links",
        "100 GB/s one way",
    ):
        assert figure in line
    assert "to the host 16.0 GB/s" in line
    assert "docs.cloud.google.com/tpu/docs/v5p" in line
    assert line.splitlines()[0] in shown(replace(PLAN, budget=None)).splitlines()
    assert "int8 none stated" in chip_line(CHIPS["tpu7x"])
    assert "to the host unknown" in chip_line(CHIPS["tpu7x"])
    assert "1 link a chip of 450 GB/s" in chip_line(CHIPS["h100"])


NOT = replace(PLAN, fits=False, needs_bytes=608 * GB, memory=None, estimate=None, spenders=(), budget=None)


def test_what_does_not_fit_says_by_how_much_what_is_known_of_it_and_what_helps() -> None:
    text = shown(replace(NOT, known_bytes={"parameters": 10 * GB, "optimizer": 20 * GB}))
    assert "does not fit: needs 608.00 GB of memory per device, v5p has 102.79 GB: 505.21 GB too much" in text
    assert row(text, "parameters") == "parameters 10.00 GB 9.7%"
    assert row(text, "optimizer") == "optimizer 20.00 GB 19.5%"
    assert "578.00 GB 562.3%" in row(text, "the rest")
    for remedy in (
        "train.pretrain.grad_accum",
        "train.pretrain.remat={}",
        "{input: offload}",
        "16 GB/s",
        "loss_chunks",
        "mesh.fsdp",
    ):
        assert remedy in text


def test_remedies_are_those_that_can_be_enough() -> None:
    large = printed(misfit(replace(NOT, known_bytes={"parameters": 200 * GB, "optimizer": 400 * GB}), CHIPS["v5p"]))
    assert "the state alone does not fit" in large
    assert "grad_accum" not in large
    decode = printed(
        misfit(
            replace(NOT, program="decode", section="serve", known_bytes={"parameters": GB, "cache": GB}), CHIPS["v5p"]
        )
    )
    assert "serve.num_slots" in decode and "serve.mesh.tensor" in decode
    assert "cache" in decode
    assert "pretrain" not in decode


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (gigabytes(1.5e12), "1.50 TB"),
        (gigabytes(2e9), "2.00 GB"),
        (gigabytes(10), "0.01 kB"),
        (flops(3e12), "3.00 TFLOP"),
        (flops(2e6), "2.00 MFLOP"),
    ],
)
def test_units_follow_the_size(text: str, expected: str) -> None:
    assert text == expected
