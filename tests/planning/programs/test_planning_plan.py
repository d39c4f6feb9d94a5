"""Plans without the TPU compiler: compiled once for each program, and read anew each time."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from rich.console import Console

from lifecycle.core.progress import Silent
from lifecycle.parallel.mesh import build_mesh
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compilers import Compiler
from lifecycle.planning.display.program import show
from lifecycle.planning.estimate.budget import inference_budget, training_budget
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.programs import plan
from lifecycle.planning.programs.fingerprint import fingerprint
from lifecycle.planning.programs.lowering import Kind, PlannedProgram, train_program
from lifecycle.planning.programs.plan import ProgramPlan, plan_program
from lifecycle.planning.topology import parse_topology
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.likelihood import NextTokenConfig
from tests.planning.fakes import fake_mesh
from tests.planning.shipped import load, pretraining
from tests.planning.small_programs import GOLDEN, GOLDEN_MESH, GOLDEN_TOPOLOGY

TOPOLOGY = parse_topology(GOLDEN_TOPOLOGY)
WORK = Work(tokens=1000, flops=4e9, flops_full_attention=5e9, runs=100, attention_share=0.5)


def program(lower: Callable[[], Any], kind: Kind = "step", beside: Any = dict) -> PlannedProgram:
    mesh = fake_mesh(TOPOLOGY, GOLDEN_MESH)
    array = jax.ShapeDtypeStruct((100, 10), jnp.int8, sharding=SingleDeviceSharding(jax.devices()[0]))
    second = {"optimizer": (array, array)} if kind == "step" else {"cache": array}
    parts = {"parameters": array, **second}
    section = "train.pretrain" if kind == "step" else "serve"
    return PlannedProgram("one", kind, section, mesh, lower, lambda: parts, WORK, beside)


def lower_scaled(factor: float = 2.0) -> Any:
    return jax.jit(lambda x: x * factor).lower(jnp.ones(4))


@dataclass
class Answering:
    """Answers with one compilation, and counts."""

    compilation: Compilation
    options: list[Mapping[str, str]] = field(default_factory=list)

    def __call__(self, _: Any, options: Mapping[str, str], compiler: Compiler, progress: Any) -> Compilation:
        del compiler, progress
        self.options.append(options)
        return self.compilation


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answering:
    golden = Compilation(GOLDEN.read_text(encoding="utf-8"), 10_000, 6000, 5, 7, 3.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = Answering(golden)
    monkeypatch.setattr(plan, "compile_program", fake)
    return fake


def test_a_program_is_compiled_once_and_measured_each_time(compiler: Answering) -> None:
    first, again = (plan_program(program(lower_scaled), TOPOLOGY, True, Silent()) for _ in range(2))
    assert first == again
    assert len(compiler.options) == 1
    assert first.fits and first.needs_bytes == 10_000
    assert first.memory is not None and first.estimate is not None and first.budget is not None
    assert (first.memory.parameters_bytes, first.memory.optimizer_bytes) == (1000, 2000)
    assert (first.memory.other_arguments_bytes, first.memory.temporaries_bytes) == (3000, 4000)
    assert first.memory.hbm_bytes == TOPOLOGY.chip.hbm_bytes
    assert first.budget == training_budget(first.estimate, TOPOLOGY, WORK)
    assert (first.program, first.section, first.mesh["tensor"]) == ("one", "train.pretrain", 2)
    json.dumps(first.plain())


def test_another_program_or_other_options_are_compiled_again(compiler: Answering) -> None:
    for lower, is_tuned in ((lower_scaled, True), (lambda: lower_scaled(3.0), True), (lower_scaled, False)):
        plan_program(program(lower), TOPOLOGY, is_tuned, Silent())
    assert len(compiler.options) == 3
    assert compiler.options[0] and not compiler.options[2]
    plan_program(program(lower_scaled), TOPOLOGY, True, Silent())
    assert len(compiler.options) == 3


def test_an_engines_program_has_a_budget_of_its_own(compiler: Answering) -> None:
    del compiler
    got = plan_program(program(lower_scaled, "decode"), TOPOLOGY, True, Silent())
    assert got.estimate is not None and got.memory is not None
    assert got.memory.cache_bytes == 1000
    assert got.budget == inference_budget(got.estimate, TOPOLOGY, WORK, {"parameters": 1000, "cache": 1000}, 4)


def test_a_program_that_does_not_fit_is_a_plan_with_what_it_needs(compiler: Answering) -> None:
    compiler.compilation = Compilation(None, 608 * 2**30, 0, 0, 0, 3.0)
    got: ProgramPlan = plan_program(program(lower_scaled), TOPOLOGY, True, Silent())
    assert (got.fits, got.needs_bytes, got.memory, got.estimate, got.budget) == (False, 608 * 2**30, None, None, None)
    assert got.known_bytes == {"parameters": 1000, "optimizer": 2000}


def settings_of(**changes: Any) -> NextTokenConfig:
    return pretraining(load("debug")).model_copy(update={"global_batch_size": 8, "grad_accum": 1} | changes)


def fingerprint_of(train: NextTokenConfig, **model: Any) -> str:
    config = load("debug")
    mesh = build_mesh(config.mesh)
    return fingerprint(train_program(config.model.model_copy(update=model), train, mesh, "pretrain").lower())


@pytest.mark.slow
def test_what_lies_beside_a_program_takes_part_of_the_memory(compiler: Answering) -> None:
    def beside(size: int) -> ProgramPlan:
        array = jax.ShapeDtypeStruct((size,), jnp.int8, sharding=SingleDeviceSharding(jax.devices()[0]))
        return plan_program(program(lower_scaled, "decode", lambda: {"state": array}), TOPOLOGY, True, Silent())

    hbm_bytes = TOPOLOGY.chip.hbm_bytes
    small, large = beside(500), beside(hbm_bytes - 9999)
    assert small.memory is not None and large.memory is not None
    assert (small.needs_bytes, small.memory.peak_bytes, small.memory.beside_bytes) == (10_500, 10_500, 500)
    assert small.memory.temporaries_bytes == 4000 and small.beside_bytes == {"state": 500}
    assert small.fits and not large.fits and large.estimate is not None
    assert len(compiler.options) == 1  # the program is the same
    console = Console(file=io.StringIO(), width=200, record=True)
    show(large, console)
    text = console.export_text()
    assert "does not fit" in text and "beside the program: state" in text and "fewer slots" in text


@pytest.mark.slow
def test_a_setting_that_changes_the_program_changes_what_is_compiled_and_no_other_does() -> None:
    own = fingerprint_of(settings_of())
    schedule = settings_of().optimizer.schedule.model_copy(update={"kind": "cosine"})
    optimizers = ({"name": "adamw"}, {"learning_rate": 0.5}, {"schedule": schedule})
    for changes in (
        {"seq_len": 32}, {"remat": {}}, {"grad_accum": 2}, {"loss_chunks": 2},
        *({"optimizer": settings_of().optimizer.model_copy(update=update)} for update in optimizers),
    ):  # fmt: skip
        assert fingerprint_of(settings_of(**changes)) != own, changes
    assert fingerprint_of(settings_of(), num_layers=1) != own
    changes = {"steps": 5000, "eval_every": 7, "checkpoint": CheckpointConfig(every=9), "log_every": 3}
    assert fingerprint_of(settings_of(**changes)) == own
