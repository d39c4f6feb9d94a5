"""The engine's two programs compiled for a chip that is not here: speed and money of a prompt and of decoding."""

import io
import json
from math import prod
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from lifecycle.cli.plan import PlanConfig, plan_decode
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.model.counts import num_params
from lifecycle.model.params import parameters
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.estimate.work import decode_work, prefill_work
from lifecycle.planning.topology import parse_topology, prepare
from lifecycle.stages.config import RunConfig

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SLOTS, LENGTH = 4, 256


def config(root: Path, *words: str) -> RunConfig:
    sizes = (f"serve.num_slots={SLOTS}", f"serve.max_seq_len={LENGTH}", f"root={root}")
    return load_config(RunConfig, QUICKSTART, (*sizes, *words))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "one device has size 1, but v5e:2x2 has 4 devices; choose serve.mesh.tensor=4"),
        (
            ("model.num_kv_heads=2", "serve.mesh.tensor=2"),
            "tensor=2 has size 2, but .* 4 devices; choose serve.mesh.tensor=4",
        ),
        (("serve.num_slots=8", "serve.mesh.fsdp=8"), "choose axes whose product is 4"),
    ],
)
def test_a_serving_mesh_that_is_not_the_topology_is_rejected(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    topology = parse_topology("v5e:2x2")
    with pytest.raises(ConfigError, match=says):
        plan_decode(config(tmp_path, *words), PlanConfig(topology="v5e:2x2"), topology, Console(), Silent())


@pytest.mark.aot
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("v5e:1x1", (), marks=pytest.mark.long),
        ("v5e:2x2", ("model.num_kv_heads=2", "serve.mesh.tensor=2", "serve.mesh.fsdp=2")),
    ],
)
def test_a_plan_of_decoding_has_speed_and_money_in_print_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
) -> None:
    prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, topology = config(tmp_path, *words), parse_topology(name)
    mesh, devices = run.serve.mesh, topology.num_devices
    console = Console(width=160, file=io.StringIO(), record=True)
    plan_decode(run, PlanConfig(topology=name, stage="decode"), topology, console, Silent())
    works = {"prefill": prefill_work(run.model, LENGTH, mesh.fsdp), "decode": decode_work(run.model, SLOTS, LENGTH)}
    budgets: dict[str, Any] = {}
    for program, work in works.items():
        plan = json.loads((run.folder / f"plan-{program}-{name.replace(':', '-')}.json").read_text())
        assert plan["fits"]
        # weights in use: scales in float32 on every device, all else in bfloat16 and cut over all of them
        memory, model = plan["memory"], run.model
        num_float32 = sum(prod(p.shape) for p in jax.tree.leaves(parameters(model)) if p.is_float32)
        assert memory["parameters_bytes"] == 2 * (num_params(model) - num_float32) / devices + 4 * num_float32
        keys_and_values = 2 * model.num_layers * SLOTS * LENGTH * model.num_kv_heads * model.head_dim
        assert memory["cache_bytes"] == 2 * keys_and_values / devices
        step_s, budget = plan["estimate"]["step_s"], plan["budget"]
        assert 0 < plan["estimate"]["times"]["compute_s"] <= step_s
        assert (plan["estimate"]["network_roofline_s"] > 0) == (devices > 1)
        assert budget["ms_per_run"] == pytest.approx(1e3 * step_s)
        assert budget["tokens_per_s"] == pytest.approx(budget["tokens_per_run"] / step_s)
        assert budget["tokens_per_s_per_chip"] == pytest.approx(budget["tokens_per_s"] / devices)
        assert budget["usd_per_million_tokens"] == pytest.approx(devices * 1.20e6 / 3600 / budget["tokens_per_s"])
        assert budget["model_flops"] == work.flops / devices
        assert 0 < budget["floor_s"] <= (memory["parameters_bytes"] + memory["cache_bytes"]) / 819e9
        budgets[program] = budget
    tokens = budgets["prefill"]["tokens_per_run"], budgets["decode"]["tokens_per_run"]
    assert tokens == (256 * mesh.fsdp, SLOTS)
    printed = console.export_text()
    for budget in budgets.values():
        assert f"{budget['tokens_per_s']:,.0f}" in printed
        assert f"{budget['ms_per_run']:,.3f} ms" in printed
        assert f"{budget['usd_per_million_tokens']:,.4f} USD" in printed
    assert "prompt tokens/s" in printed
    assert "ms a token" in printed
    assert "of the memory's rate" in printed
