"""The programs of stages that learn from pairs and from rewards: their batches, what lies beside each, and compiled."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lifecycle.cli.plan import PlanConfig, plan_training
from lifecycle.core.progress import Silent
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.planning.compiled.memory import bytes_by_part
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.programs.lowering import PlannedProgram
from lifecycle.planning.programs.rollouts import answering_programs, rollout_programs
from lifecycle.planning.topology import parse_topology, prepare
from lifecycle.rl.config import GrpoConfig, PpoConfig, RolloutConfig
from lifecycle.rl.lowering import example_row as row_of_rollouts
from lifecycle.rl.packed import packed, with_rewards
from lifecycle.rl.sampling import Prompt, Rollout
from lifecycle.testing.tiny_rows import labelled_rows, pair_rows
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.lowering import example_row
from lifecycle.training.packing import Row
from lifecycle.training.preference import DpoConfig, KtoConfig
from tests.planning.shipped import load

SIZES: dict[str, Any] = {"steps": 8, "seq_len": 32, "global_batch_size": 4}
ROLLOUTS: dict[str, Any] = SIZES | {
    "rewards": [{"name": "exact"}], "prompts_per_step": 2, "group_size": 3, "max_prompt_tokens": 8,
    "max_completion_tokens": 4, "num_slots": 4,
}  # fmt: skip
OTHER = ("peak_bytes", "code_bytes", "hbm_bytes", "host_bytes")  # of a plan's memory: no parts of the peak
MODEL = ModelConfig(
    vocab_size=64, d_model=16, d_ff=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, max_seq_len=32
)


def grpo(**changes: Any) -> GrpoConfig:
    return GrpoConfig.model_validate(ROLLOUTS | changes)


def kinds_of(row: Row) -> dict[str, tuple[str, int]]:
    return {name: (column.dtype.name, column.ndim) for name, column in row.items()}


def test_example_rows_are_like_those_that_stages_read() -> None:
    assert kinds_of(example_row(DpoConfig(**SIZES))) == kinds_of(pair_rows().row(0))
    assert kinds_of(example_row(KtoConfig(**SIZES))) == kinds_of(labelled_rows().row(0))
    few = example_row(DistillationConfig(teacher="wide", loss_top_k=3, **SIZES))
    assert few["teacher_ids"].shape == few["teacher_logprobs"].shape == (32, 3)


def test_an_example_row_of_rollouts_is_like_a_row_of_some() -> None:
    settings = grpo(beta=0.1)
    rollouts = [Rollout(Prompt(i, [1, 2], ""), [3, 4], [-1.0, -1.0], "", is_cut=False) for i in range(6)]
    made, _ = with_rewards(packed(rollouts, settings), np.array([1.0, 0.0] * 3), settings)
    example = row_of_rollouts(settings)
    added = {name: kind for name, kind in kinds_of(example).items() if name not in made}
    assert added == {"reference_logprobs": ("float32", 1)}
    assert all(example[name].shape == column.shape[1:] for name, column in made.items())
    ppo = row_of_rollouts(PpoConfig.model_validate(ROLLOUTS | {"group_size": 1}))
    assert {"values", "returns", "token_advantages", "old_logprobs"} <= set(ppo)


def programs(settings: RolloutConfig, reward: ModelConfig | None = None) -> dict[str, PlannedProgram]:
    mesh = build_mesh(MeshConfig())
    model = settings.trained(MODEL)
    return {program.name: program for program in rollout_programs(model, settings, mesh, "train.a", reward)}


def test_what_lies_beside_each_program_of_rollouts() -> None:
    size = 4 * num_params(MODEL)
    plain = programs(grpo())
    assert {name: program.kind for name, program in plain.items()} == {
        "a": "step", "a-prefill": "prefill", "a-decode": "decode",
    }  # fmt: skip
    assert plain["a"].beside() == {}
    beside = bytes_by_part(plain["a-decode"].beside())
    assert beside["the trainer's parameters"] == size and beside["optimizer"] == pytest.approx(2 * size, rel=1e-3)
    kept = programs(grpo(beta=0.1), reward=MODEL)
    assert bytes_by_part(kept["a"].beside()) == {"reference": size, "reward model": size}
    assert bytes_by_part(kept["a-decode"].beside()) == beside | {"reference": size, "reward model": size}
    scoring = kept["a-logprobs"]
    assert bytes_by_part(scoring.arguments()) == {"parameters": size}
    assert bytes_by_part(scoring.beside()).keys() == {"optimizer", "reference", "reward model"}
    adapted = bytes_by_part(programs(grpo(adapter={"rank": 2, "alpha": 4}))["a-decode"].beside())
    assert adapted["weights handed to the sampler"] == size


def test_a_ppo_stage_also_measures_values() -> None:
    assert set(programs(PpoConfig.model_validate(ROLLOUTS | {"group_size": 1}))) == {
        "a", "a-logprobs", "a-values", "a-prefill", "a-decode",
    }  # fmt: skip


def test_how_often_programs_run_for_a_step() -> None:
    """3 completions of each of 2 prompts, of 4 tokens, in 4 slots: a prompt is prefilled once for its completions and
    again for those that get slots later, and a piece of a completion with what comes before it."""
    runs = {name: program.runs_per_step for name, program in programs(grpo(beta=0.1, num_iterations=2)).items()}
    assert runs == {"a": 1, "a-logprobs": 0.5, "a-prefill": 1.5, "a-decode": 4}
    few = {program.kind: program.runs_per_step for program in programs(grpo(num_slots=2)).values()}
    assert few == {"step": 1, "prefill": 4, "decode": 12}
    partial = {"prompts_in_flight": 3, "tokens": 2}
    pieces = {
        program.kind: program.runs_per_step for program in programs(grpo(partial=partial, max_staleness=1)).values()
    }
    assert pieces == {"step": 1, "prefill": 3 + 6, "decode": 8}


def test_the_programs_of_a_student_that_answers() -> None:
    """Half of the steps answer 4 prompts with up to 8 tokens in 2 slots, beside the teacher."""
    own = {"share": 0.5, "max_completion_tokens": 8, "num_slots": 2}
    train = DistillationConfig.model_validate(SIZES | {"teacher": "wide", "on_policy": own})
    made = answering_programs(MODEL, train, build_mesh(MeshConfig()), "train.a", {"teacher": MODEL})
    found = {program.name: program for program in made}
    assert {name: program.runs_per_step for name, program in found.items()} == {
        "a": 1, "a-prefill": 2, "a-decode": 8,
    }  # fmt: skip
    beside = bytes_by_part(found["a-decode"].beside())
    assert beside["teacher"] == beside["the trainer's parameters"] == 4 * num_params(MODEL)
    assert "func.func public @main" in found["a-decode"].lower().as_text()


def test_every_program_of_rollouts_is_lowered() -> None:
    for name, program in programs(grpo(beta=0.1)).items():
        assert "func.func public @main" in program.lower().as_text(), name


@pytest.mark.aot
@pytest.mark.long
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed")
def test_a_stage_of_rollouts_is_planned_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("train.largest.beta=0.1", "train.largest.seq_len=256", "model.max_seq_len=256", f"root={tmp_path}")
    config, console = load("grpo_toy", *words), Console(width=160, file=io.StringIO(), record=True)
    plan_training(config, PlanConfig(topology="v5e:1x1", stage="largest"), parse_topology("v5e:1x1"), console, Silent())
    text = console.export_text()
    table = text[text.index("a step of the stage, at most") :].splitlines()
    names = ("largest", "largest-logprobs", "largest-prefill", "largest-decode")
    assert [line.split()[0] for line in table[2:6]] == list(names)
    assert table[6].split()[0] == "fits"
    for name in names:
        plan = json.loads((config.folder / f"plan-{name}-v5e-1x1.json").read_text(encoding="utf-8"))
        memory = plan["memory"]
        parts = sum(size for part, size in memory.items() if part.endswith("_bytes") and part not in OTHER)
        assert parts == memory["peak_bytes"] == plan["needs_bytes"]
        assert memory["beside_bytes"] == sum(plan["beside_bytes"].values()) > 0
        assert plan["estimate"]["cycles"] > 0
