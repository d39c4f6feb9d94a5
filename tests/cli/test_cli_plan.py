"""The plan verb: its own words beside a run's settings, what is compiled again, what is written, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lifecycle.cli.plan import PlanConfig, plan_decode, plan_training, planned_stage, show_plan, split
from lifecycle.cli.plan_search import search_and_show
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.estimate.budget import InferenceBudget
from lifecycle.planning.programs import plan
from lifecycle.planning.programs.plan import ProgramPlan
from tests.planning.fakes import CUBE, program_plan
from tests.planning.shipped import ROOT, load, pretraining


def test_the_plans_words_are_taken_out_and_the_runs_are_left() -> None:
    own, others = split(("topology=v5p:4x4x4", "train.pretrain.steps=10", "search=true", "mesh.fsdp=64"))
    assert own == PlanConfig(topology="v5p:4x4x4", search=True)
    assert others == ("train.pretrain.steps=10", "mesh.fsdp=64")
    assert split(())[0] == PlanConfig()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("topolgy=v5p:4x4x4",), "did you mean 'topology'"),
        (("topology=v5e:1x1", "stage=[serve]"), "stage"),
        (("topology=v5p:4x4x4", "search=perhaps"), "search"),
        (("topology=v5p:4x4x4", "search"), "search: expected search=VALUE"),
        (("topology=",), "topology= is empty.*topology=v5p:4x4x4"),
        (("topology=[v5p",), "topology=\\[v5p: the value is not valid YAML"),
        (("search=true",), "search=true needs a topology to compile for.*add topology=CHIP:SHAPE.*leave out search"),
        (("stage=decode",), "stage=decode needs.*topology=v5p:4x4x4"),
        (("is_tuned=false", "search=true"), "is_tuned=false search=true needs.*leave out is_tuned and search"),
        (("topology=v5e:1x1", "stage=decode", "search=true"), "the engine's programs; leave out one of the two"),
    ],
)
def test_a_wrong_word_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(words)


def test_a_training_stage_is_planned_as_the_config_and_the_words_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def plan_train_step(*arguments: Any) -> ProgramPlan:
        *sizes, _, others = arguments
        assert others == {}
        asked.append(tuple(sizes))
        return program_plan()

    monkeypatch.setattr(plan, "plan_train_step", plan_train_step)
    config = load("llama3_8b_v5p_128", f"root={tmp_path}")
    out = StringIO()
    plan_training(config, PlanConfig(topology=CUBE.name, is_tuned=False), CUBE, Console(file=out, width=200), Silent())
    assert asked == [(config.model, pretraining(config), config.mesh, CUBE, "train.pretrain", False)]
    path = config.folder / "plan-pretrain-v5p-4x4x4.json"
    assert json.loads(path.read_text(encoding="utf-8"))["needs_bytes"] == 10
    assert f"written: {path}" in "".join(out.getvalue().splitlines())


def test_what_a_depth_decides_is_shown_with_its_rule(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    (tmp_path / "a.py").write_text("pass")
    path.write_text(
        f"""
        name: dialled
        data: {{sources: [{{name: here, path: {tmp_path}, include: ["*.py"], license: MIT}}]}}
        tokenizer: {{vocab_size: 512}}
        model: {{depth: 12, vocab_size: 32768}}
        train: {{pretrain: {{objective: next_token, seq_len: 2048, optimizer: {{learning_rate: 0.001}}}}}}
        """
    )
    out = StringIO()
    show_plan(path, (f"root={tmp_path}",), Console(file=out, width=200))
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.getvalue().splitlines() if "." in line[:20]}
    assert shown["model.d_model"].startswith("768  64 x depth")
    # 12 layers of 12 x 768^2 weights and a head of 32,768 x 768, 20 tokens for each, in steps of 2^18 tokens
    assert shown["train.pretrain.steps"].startswith("8,402  20 tokens per parameter, 110,119,680")
    assert "train.pretrain.optimizer.learning_rate" not in shown


def test_the_first_training_stage_is_planned_unless_another_is_named() -> None:
    config = load("llama3_8b_v5p_128")
    assert planned_stage(config, None) == "pretrain"
    assert planned_stage(config, "sft") == "sft"
    with pytest.raises(ConfigError, match="stage=sfd: no such training stage; did you mean 'sft'"):
        planned_stage(config, "sfd")
    assert planned_stage(config, "prefer") == "prefer"
    with pytest.raises(ConfigError, match=r"train\.prefer: the search compares .* chat rows, not of dpo"):
        search_and_show(config, "prefer", True, CUBE, Console(), Silent())


def test_a_plan_of_decoding_shows_and_writes_both_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def plan_engine(*arguments: Any, **_: Any) -> Iterator[ProgramPlan]:
        asked.append(arguments[:-1])
        for name, tokens in (("prefill", 256), ("decode", 4)):
            budget = InferenceBudget(1.0, tokens, 2.0, 2.0, 3.0, 0.5, 1, 1, 1e-3, None)
            yield replace(program_plan(), program=name, kind=name, section="serve", budget=budget)

    monkeypatch.setattr(plan, "plan_engine", plan_engine)
    config = load(
        "llama3_8b_v5p_128", f"root={tmp_path}", "serve.num_slots=4", "serve.max_seq_len=2048", "serve.mesh.tensor=8",
        "serve.speculation.method=ngram",
    )  # fmt: skip
    console = Console(file=StringIO(), width=200, record=True)
    plan_decode(config, PlanConfig(topology=CUBE.name, stage="decode"), CUBE, console, Silent())
    text = console.export_text()
    assert asked == [(config.model, 4, 2048, MeshConfig(tensor=8), CUBE, True)]
    assert "serve.speculation is not planned" in text
    assert "one for each of 4 slots" in text and "to the first token, for each chunk" in text
    for name, tokens in (("prefill", 256), ("decode", 4)):
        written = json.loads((config.folder / f"plan-{name}-v5p-4x4x4.json").read_text(encoding="utf-8"))
        assert (written["program"], written["budget"]["tokens_per_run"]) == (name, tokens)


# A compilation that takes a minute and cannot be stopped, in a thread as the real one
SLOW = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from rich.console import Console
from lifecycle.planning.estimate.budget import InferenceBudget
from lifecycle.planning.programs import plan
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.cli.plan import show_plan

def slow():
    print("compiling", flush=True)
    time.sleep(60)

plan.mesh_over = lambda *_: SimpleNamespace(devices=SimpleNamespace(flat=[SimpleNamespace(device_kind="TPU v5")]))
plan.train_program = lambda *_: SimpleNamespace(name="pretrain", lower=slow, mesh=plan.mesh_over(), kind="step")
show_plan(Path(sys.argv[1]), ("topology=v5p:4x4x4",), Console())
"""


def test_ctrl_c_ends_a_plan_at_once_with_its_own_status(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SLOW, str(ROOT / "configs" / "llama3_8b_v5p_128.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "compiling\n"
        time.sleep(0.5)  # the main thread is past the line and waits
        stopped = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait() == 130
        assert time.monotonic() - stopped < 20
    assert "the same command continues from here" in " ".join(rest.split())
