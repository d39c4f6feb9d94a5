"""The engine's two programs compiled for a chip that is not here: speed and money of a prompt and of decoding."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lifecycle.cli.plan import PlanConfig, plan_decode
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.model.config import num_params
from lifecycle.planning.estimate.work import decode_work, prefill_work
from lifecycle.planning.topology import has_compiler, parse_topology, prepare
from lifecycle.stages.config import RunConfig

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SLOTS, LENGTH = 4, 256


def config(root: Path) -> RunConfig:
    words = (f"serve.num_slots={SLOTS}", f"serve.max_seq_len={LENGTH}", f"root={root}")
    return load_config(RunConfig, QUICKSTART, words)


def test_the_engine_is_planned_on_one_device(tmp_path: Path) -> None:
    topology = parse_topology("v5e:2x2")
    with pytest.raises(ConfigError, match="choose topology=v5e:1x1"):
        plan_decode(config(tmp_path), PlanConfig(topology="v5e:2x2"), topology, Console(), Silent())


@pytest.mark.aot
@pytest.mark.skipif(not has_compiler(), reason="libtpu is not installed")
def test_a_plan_of_decoding_tells_speed_and_money_in_print_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, topology = config(tmp_path), parse_topology("v5e:1x1")
    console = Console(width=160, file=io.StringIO(), record=True)
    plan_decode(run, PlanConfig(topology="v5e:1x1", stage="decode"), topology, console, Silent())
    works = {"prefill": prefill_work(run.model, LENGTH), "decode": decode_work(run.model, SLOTS, LENGTH)}
    found: dict[str, Any] = {}
    for name in ("prefill", "decode"):
        plan = json.loads((run.folder / f"plan-{name}-v5e-1x1.json").read_text())
        assert plan["fits"]
        # The engine holds its weights as they are used: the norms' scales in float32, all else in bfloat16.
        num_scales = (2 * run.model.num_layers + 1) * run.model.d_model
        assert plan["memory"]["parameters_bytes"] == 2 * num_params(run.model) + 2 * num_scales
        step_s, budget = plan["estimate"]["step_s"], plan["budget"]
        assert 0 < plan["estimate"]["times"]["compute_s"] <= step_s
        assert budget["ms_per_run"] == pytest.approx(1e3 * step_s)
        assert budget["tokens_per_s"] == pytest.approx(budget["tokens_per_run"] / step_s)
        assert budget["usd_per_million_tokens"] == pytest.approx(1e6 * 1.20 / 3600 / budget["tokens_per_s"])
        assert budget["model_flops"] == works[name].flops
        found[name] = budget
    assert (found["prefill"]["tokens_per_run"], found["decode"]["tokens_per_run"]) == (256, SLOTS)
    printed = console.export_text()
    for budget in found.values():
        assert f"{budget['tokens_per_s']:,.0f}" in printed
        assert f"{budget['ms_per_run']:,.3f} ms" in printed
        assert f"{budget['usd_per_million_tokens']:,.4f} USD" in printed
    assert "prompt tokens/s" in printed
    assert "ms a token" in printed
