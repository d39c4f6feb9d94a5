"""Steps on GPUs by arithmetic: sizes and FLOPs by hand, what a node's limits are, and what is shown."""

import re
from io import StringIO

import pytest
from rich.console import Console

from lifecycle.cli.plan_arithmetic import show_by_arithmetic
from lifecycle.core.config import ConfigError
from lifecycle.planning.search.arithmetic import ArithmeticPlan, plan_by_arithmetic
from lifecycle.planning.topology import parse_topology
from tests.planning.shipped import load, shipped

NODE = "h100:8"
LAYERS, ROWS, POSITIONS, WIDTH, HIDDEN = 32, 16, 8192, 4096, 14336  # Llama 3.1 8B; rows of a GPU and step


def planned() -> ArithmeticPlan:
    run = shipped("llama3_8b_h100_8", NODE)
    return plan_by_arithmetic(run.model, run.train, run.candidate, run.topology)


def test_the_memory_of_the_shipped_step_is_that_of_its_parts() -> None:
    plan = planned()
    # float32 parameters, and AdamW's two moments, over 8 GPUs
    assert plan.expected.footprint.state_bytes == pytest.approx(12 * 8.03e9 / 8, rel=1e-3)
    # of a row's positions in bfloat16: input, q, attention's output, middle; k and v; gate and up; float32 log-sum-exps
    kept = POSITIONS * (2 * (4 * WIDTH + 2 * 1024 + 2 * HIDDEN) + 4 * 32)
    assert plan.expected.footprint.saved_bytes == LAYERS * kept
    assert plan.mask_bytes == 2 * POSITIONS**2
    assert plan.total_bytes < 0.75 * 84.94e9  # what JAX takes of a GPU by default


def test_attentions_forward_kernel_runs_twice_although_its_output_is_kept() -> None:
    forward = LAYERS * ROWS * 4 * WIDTH * POSITIONS**2 / 2  # two products, half of the square
    assert planned().expected.kernel_flops == pytest.approx(forward * (1 + 1 + 2.5), rel=1e-6)


def test_hidden_exposed_and_slow_steps_are_in_order() -> None:
    plan = planned()
    assert plan.fastest_s == plan.expected.compute_s > plan.expected.network_s
    assert plan.step_s == plan.expected.compute_s + plan.expected.network_s
    assert plan.slowest_s == pytest.approx(plan.step_s + plan.expected.compute_s / 3)


def test_more_than_a_node_is_refused() -> None:
    run = shipped("llama3_8b_h100_8", NODE)
    with pytest.raises(ConfigError, match="one node of up to 8; choose h100:8"):
        plan_by_arithmetic(run.model, run.train, run.candidate, parse_topology("h100:16"))
    with pytest.raises(ConfigError, match=r"h100:4\*2: .*one node of up to 8"):
        plan_by_arithmetic(run.model, run.train, run.candidate, parse_topology("h100:4*2"))
    with pytest.raises(ConfigError, match="has size 8, but h100:4 has 4 devices"):
        plan_by_arithmetic(run.model, run.train, run.candidate, parse_topology("h100:4"))


def shown(*words: str, stage: str = "pretrain") -> str:
    console = Console(file=StringIO(), width=200)
    show_by_arithmetic(load("llama3_8b_h100_8", *words), stage, False, parse_topology(NODE), console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_run_is_the_steps_that_the_stage_itself_takes() -> None:
    more = "train.more={from: pretrain@8000, steps: 10000, optimizer: {schedule: {kind: constant}}}"
    text, plan = shown("train.pretrain.optimizer.schedule={kind: constant}", more, stage="more"), planned()
    for name, seconds in (("hidden", plan.fastest_s), ("exposed", plan.step_s)):
        days = 2000 * seconds / 86400
        assert re.search(rf"the run, network {name} +{days:.2f} days +{days * 24 * 8 * 10.98:,.0f} USD", text)


def test_a_precision_that_is_not_counted_is_told() -> None:
    assert "precision=fp8 is counted as bfloat16" in shown("train.pretrain.precision=fp8")
    assert "precision" not in shown()


def test_a_step_that_needs_more_than_jax_takes_says_what_to_set() -> None:
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in shown()
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.93" in shown("train.pretrain.grad_accum=8")
    too_much = shown("train.pretrain.grad_accum=4")
    assert "does not fit: it needs 1" in too_much and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in too_much
