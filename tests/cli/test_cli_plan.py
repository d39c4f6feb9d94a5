"""The plan verb: its own words beside a run's settings, what is compiled again, what is written, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lifecycle.cli.plan import PlanConfig, plan_decode, planned_training, split, write_beside
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.inference.scheduler import BUCKETS
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning import topology
from lifecycle.planning.programs import plan
from lifecycle.planning.topology import parse_topology
from lifecycle.stages.config import RunConfig
from tests.planning.programs.test_planning_plan import planned
from tests.planning.shipped import ROOT, load, pretraining

CUBE = "v5p:4x4x4"


def test_the_plans_words_are_taken_out_and_the_runs_are_left() -> None:
    own, others = split(("topology=v5p:4x4x4", "train.pretrain.steps=10", "search=true", "mesh.fsdp=64"))
    assert own == PlanConfig(topology="v5p:4x4x4", search=True)
    assert others == ("train.pretrain.steps=10", "mesh.fsdp=64")
    assert split(())[0] == PlanConfig()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("topolgy=v5p:4x4x4",), "did you mean 'topology'"),
        (("topology=v5e:1x1", "stage=serve"), "stage"),
        (("topology=v5p:4x4x4", "search=perhaps"), "search"),
        (("topology=v5p:4x4x4", "search"), "search: expected search=VALUE"),
        (("topology=",), "topology= names none.*topology=v5p:4x4x4"),
        (("topology=[v5p",), "topology=\\[v5p: the value is not valid YAML"),
        (("search=true",), "search=true says how to compile.*add topology=CHIP:SHAPE.*leave out search"),
        (("stage=decode",), "stage=decode says.*topology=v5p:4x4x4"),
        (("is_tuned=false", "search=true"), "is_tuned=false search=true says.*leave out is_tuned and search"),
        (("topology=v5e:1x1", "stage=decode", "search=true"), "run on one device; leave out one of the two"),
    ],
)
def test_a_wrong_word_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(words)


class Compiler:
    """Counts what `planned_training` has compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.count = 0
        device = SimpleNamespace(device_kind="TPU v5")
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(topology, "mesh_over", lambda *_: SimpleNamespace(devices=np.array([device])))
        monkeypatch.setattr(plan, "plan_program", self._compile)

    def _compile(self, *_: Any) -> plan.Planned:
        self.count += 1
        return planned()

    def is_run(self, config: RunConfig, mesh: MeshConfig | None = None, **own: Any) -> bool:
        """Whether the plan had to be compiled."""
        before = self.count
        name = own.pop("topology", CUBE)
        settings = PlanConfig(topology=name, **own)
        where = parse_topology(name)
        planned_training(config, mesh or config.mesh, pretraining(config), settings, where, Silent())
        return self.count > before


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    return Compiler(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("train.pretrain.seq_len=4096",),
        ("train.pretrain.remat={}",),
        ("train.pretrain.grad_accum=2",),
        ("train.pretrain.loss_chunks=16",),
        ("train.pretrain.optimizer.name=muon",),
        ("train.pretrain.optimizer.learning_rate=0.001",),
        ("model.num_layers=16",),
        ("model=llama3_2_3b",),
    ],
)
def test_a_changed_setting_is_another_plan(compiler: Compiler, words: tuple[str, ...]) -> None:
    config = load("llama3_8b_v5p_128")
    assert compiler.is_run(config)
    assert not compiler.is_run(config)
    assert compiler.is_run(load("llama3_8b_v5p_128", *words))
    assert not compiler.is_run(config)


def test_mesh_topology_options_and_code_are_in_a_plans_key(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("llama3_8b_v5p_128")
    assert compiler.is_run(config)
    assert compiler.is_run(config, MeshConfig(fsdp=32, context=2))
    assert compiler.is_run(config, topology="v5p:2x4x8")
    assert compiler.is_run(config, is_tuned=False)
    assert not compiler.is_run(config)
    monkeypatch.setattr(plan, "code_hash", lambda: "other code")
    assert compiler.is_run(config)


@pytest.mark.parametrize(
    "word", ["train.pretrain.steps=500000", "train.pretrain.eval_every=7", "train.pretrain.checkpoint_every=9"]
)
def test_what_no_program_depends_on_is_in_no_key(compiler: Compiler, word: str) -> None:
    assert compiler.is_run(load("llama3_8b_v5p_128"))
    assert not compiler.is_run(load("llama3_8b_v5p_128", word))


def decoded(monkeypatch: pytest.MonkeyPatch, config: RunConfig, name: str, asked: list[str]) -> str:
    """What `plan_decode` prints; `asked` gets the programs that had to be compiled."""

    def compile_(program: str, *_: Any) -> plan.Planned:
        asked.append(program)
        return replace(planned(), program=program, topology=name)

    device = SimpleNamespace(device_kind="TPU v5")
    monkeypatch.setattr(topology, "mesh_of_one", lambda _: SimpleNamespace(devices=np.array([device])))
    monkeypatch.setattr(plan, "plan_program", compile_)
    console = Console(file=StringIO(), width=200, record=True)
    plan_decode(config, PlanConfig(topology=name, stage="decode"), parse_topology(name), console, Silent())
    return console.export_text()


def test_a_plan_of_decoding_shows_and_writes_both_programs_and_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[str] = []
    config = load("llama3_8b_v5p_128", f"root={tmp_path}", "serve.num_slots=4", "serve.max_seq_len=2048")
    text = decoded(monkeypatch, config, "v5p:1x1x1", asked)
    assert asked == ["prefill", "decode"]
    assert "one for each of 4 slots" in text and "to the first token, for each chunk" in text
    for name in asked:
        written = json.loads((config.folder / f"plan-{name}-v5p-1x1x1.json").read_text(encoding="utf-8"))
        assert written["program"] == name
        assert written["budget"]["tokens_per_run"] == (4 if name == "decode" else BUCKETS[-1])
    decoded(monkeypatch, config, "v5p:1x1x1", asked)
    assert len(asked) == 2
    for word in ("serve.num_slots=8", "serve.max_seq_len=1024"):
        other = load("llama3_8b_v5p_128", f"root={tmp_path}", "serve.num_slots=4", "serve.max_seq_len=2048", word)
        decoded(monkeypatch, other, "v5p:1x1x1", asked)
    assert len(asked) == 6


def test_decoding_on_many_chips_is_refused_with_the_topology_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"decodes on one device, this has 64; choose topology=v5p:1x1x1"):
        decoded(monkeypatch, load("llama3_8b_v5p_128"), CUBE, [])


def test_a_plan_is_written_into_the_runs_folder(tmp_path: Path) -> None:
    config = load("llama3_8b_v5p_128", f"root={tmp_path}")
    out = StringIO()
    write_beside(config, "pretrain", parse_topology("v5p:4x4x4*2"), planned().plain(), Console(file=out, width=400))
    path = tmp_path / config.name / "plan-pretrain-v5p-4x4x4-slices2.json"
    assert json.loads(path.read_text(encoding="utf-8"))["needs_bytes"] == 10
    assert out.getvalue() == f"written: {path}\n"


# A compilation that takes a minute and cannot be stopped, in a thread as the real one
SLOW = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from rich.console import Console
from lifecycle.inference.scheduler import BUCKETS
from lifecycle.planning.programs import plan
from lifecycle.planning import topology
from lifecycle.cli.plan import show_plan

def slow(*arguments):
    print("compiling", flush=True)
    return plan._with_progress(lambda: time.sleep(60), arguments[-1])

device = SimpleNamespace(device_kind="TPU v5")
topology.mesh_over = lambda *_: SimpleNamespace(devices=np.array([device]))
plan.plan_program = slow
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
    assert "the same command goes on from here" in " ".join(rest.split())
