"""The search as it is shown: the tables, the reasons, and settings that can be pasted."""

import json
import shlex
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lifecycle.cli import plan_search
from lifecycle.cli.plan import PlanConfig, split
from lifecycle.cli.plan_search import changed, words
from lifecycle.core.progress import Silent
from lifecycle.model.config import Remat
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.display.search import EXAMPLES
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.search import reasons, search
from lifecycle.planning.search.candidates import Candidate
from lifecycle.stages.config import RunConfig
from tests.planning.fakes import CUBE, fake_mesh, program_plan
from tests.planning.shipped import load, pretraining

MOVED = Candidate(MeshConfig(replica=2, fsdp=32), 2, "attention", {"attention_out": "save", "input": "offload"}, 16)


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("llama3_8b_v5p_128", MOVED),
        ("llama3_8b_v5p_128", Candidate(MeshConfig(fsdp=16, tensor=4), 1, "nothing", {})),
        ("llama3_70b_v6e_256", Candidate(MeshConfig(fsdp=64, tensor=4), 1, "nothing", {})),
        ("mixtral_8x7b_v5p_128", Candidate(MeshConfig(fsdp=64), 2, "attention", {"attention_out": "save"})),
        ("llama3_8b_128k_v5p_128", Candidate(MeshConfig(fsdp=2, context=32), 2, "nothing", {})),
    ],
)
def test_the_words_given_to_the_command_line_make_the_candidate(name: str, candidate: Candidate) -> None:
    config = load(name)
    pasted = shlex.split(" ".join(shlex.quote(word) for word in words(config, "pretrain", candidate)))
    own, others = split(tuple(pasted))
    assert own == PlanConfig()
    again = load(name, *others)
    assert again == changed(config, "pretrain", candidate)
    assert again.mesh == candidate.mesh
    got = (pretraining(again).grad_accum, pretraining(again).remat, pretraining(again).loss_chunks)
    assert got == (candidate.grad_accum, candidate.remat, candidate.loss_chunks)


def test_the_words_hold_every_axis_that_differs_also_one_that_is_gone() -> None:
    config = load("llama3_8b_128k_v5p_128")
    found = words(config, "pretrain", Candidate(MeshConfig(replica=2, fsdp=2, tensor=8), 1, "nothing", {}))
    assert found == [
        "mesh.replica=2", "mesh.fsdp=2", "mesh.context=1", "mesh.tensor=8",
        "train.pretrain.grad_accum=1", "train.pretrain.remat={}",
    ]  # fmt: skip


def test_other_stages_lose_only_the_names_that_their_layers_do_not_have_there() -> None:
    config = load("mixtral_8x7b_v5p_128")
    whole = changed(config, "pretrain", Candidate(MeshConfig(fsdp=64), 1, "nothing", {}))
    assert config.train["sft"].remat is not None
    kept: Remat = {name: what for name, what in config.train["sft"].remat.items() if name != "expert_rows"}
    assert (whole.train["sft"].remat, whole.train["prefer"].remat) == (kept, kept)
    assert changed(config, "pretrain", Candidate(config.mesh, 1, "nothing", {})).train["sft"] == config.train["sft"]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`search_and_show` for the 8B run on the cube; each candidate's plan is what `compile_one` says."""

    monkeypatch.setattr(search, "mesh_over", fake_mesh)

    def shown(compile_one: Any, out: StringIO) -> RunConfig:
        config = load("llama3_8b_v5p_128", f"root={tmp_path}")
        monkeypatch.setattr(plan_search, "plan_train_step", lambda *_: compile_one())
        console = Console(file=out, width=220)
        plan_search.search_and_show(config, "pretrain", True, CUBE, console, Silent())
        return config

    return shown


def some_plans() -> Any:
    answers: Any = iter(
        [
            program_plan(1.5),
            ValueError("no such tile\nand more"),
            program_plan(fits=False, needs=200 * 10**9),
            program_plan(1.0),
        ]
    )

    def compile_one() -> ProgramPlan:
        answer = next(answers, program_plan(2.0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return compile_one


def test_a_search_shows_each_kind_of_reason_with_its_number_and_the_best_of_it(show: Any) -> None:
    out = StringIO()
    config = show(some_plans(), out)
    found = json.loads(next(config.folder.glob("plan-search-*.json")).read_text(encoding="utf-8"))
    lines = out.getvalue().splitlines()
    rejected = found["rejected"]
    for kind in dict.fromkeys(r["kind"] for r in rejected):
        members = [r for r in rejected if r["kind"] == kind]
        (start,) = [i for i, line in enumerate(lines) if line.strip().split("  ")[0] == kind]
        assert f" {len(members)} " in lines[start]
        for line, member in zip(lines[start:], members[:EXAMPLES], strict=False):
            assert member["name"] in line
    assert {r["kind"] for r in rejected} >= {"compiler: error", "memory by arithmetic", "cannot be cut"}
    assert "no such tile" in out.getvalue() and "and more" not in out.getvalue()
    assert reasons.NO_STAGES.split(":")[0] in out.getvalue()


def test_the_shown_settings_load_as_the_pick(show: Any) -> None:
    out = StringIO()
    config = show(some_plans(), out)
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("settings: ")]
    again = load("llama3_8b_v5p_128", f"root={config.root}", *shlex.split(line.removeprefix("settings: ")))
    pick = json.loads(next(config.folder.glob("plan-search-*.json")).read_text(encoding="utf-8"))["pick"]["candidate"]
    assert again.mesh.plain() == pick["mesh"]
    assert pretraining(again).plain()["remat"] == pick["remat"]
    assert pretraining(again).grad_accum == pick["grad_accum"]


def test_a_search_that_is_stopped_shows_what_it_has(show: Any) -> None:
    answers = iter([program_plan(1.5)])

    def compile_one() -> ProgramPlan:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    out = StringIO()
    with pytest.raises(KeyboardInterrupt):
        show(compile_one, out)
    assert "1,500.00 ms" in out.getvalue()
    assert "settings:" not in out.getvalue()
