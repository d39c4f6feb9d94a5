"""The chain's order, what decides a stage's key, and what counts as finished."""

import os
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cli.main import MAKERS
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.stages import chain
from lifecycle.stages.chain import STAGES, TARGETS, Outcome, Stage, bring_up_to_date, needed, plan
from lifecycle.stages.config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def read(*overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / "debug.yaml", overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_run_can_be_read_and_says_how_to_run_it(path: Path) -> None:
    load_config(RunConfig, path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"lifecycle run configs/{path.name}" in " ".join(header)


def test_every_stage_comes_after_its_inputs() -> None:
    met: set[str] = set()
    for stage in needed(TARGETS["run"]):
        assert met.issuperset(stage.inputs), stage.name
        met.add(stage.name)
    assert met == set(STAGES)  # `run` makes all there is


def test_every_verb_that_makes_something_has_its_targets() -> None:
    assert set(MAKERS) == set(TARGETS)


def test_a_target_brings_only_what_it_needs() -> None:
    names = [stage.name for stage in needed(("sft",))]
    assert names == ["documents", "tokenizer", "tokens", "rows", "pretrain", "sft"]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("sft.log_every=1", set()),
        ("pretrain.checkpoint_every=1", set()),
        ("prefer.keep_checkpoints=9", set()),
        ("data.workers=7", set()),
        ("serve.port=1", set()),
        ("sft.steps=11", {"sft"}),
        ("pretrain.eval_every=7", {"pretrain"}),
        ("mesh.fsdp=2", {"pretrain", "sft", "prefer"}),
        ("gate.level=0.99", {"registration"}),
        ("price.core_hour=7", {"report"}),
        ("data.quality.min_words=51", {"documents"}),
        ("rows.heldout_fraction=0.5", {"rows"}),
    ],
)  # fmt: skip
def test_a_setting_decides_over_the_stages_that_it_changes(override: str, changed: set[str]) -> None:
    before, after = read(), read(override)
    assert {name for name, stage in STAGES.items() if stage.settings(before) != stage.settings(after)} == changed


def test_the_seed_decides_over_everything_random() -> None:
    before, after = read(), read("seed=1")
    changed = {name for name, stage in STAGES.items() if stage.settings(before) != stage.settings(after)}
    assert changed >= {"documents", "tokenizer", "rows", "pretrain", "sft", "prefer"}


def test_an_edited_source_file_is_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    config = read(f"data.sources=[{{name: own, path: {tmp_path}}}]")
    before = STAGES["documents"].settings(config)
    (tmp_path / "a.txt").write_text("two")
    assert STAGES["documents"].settings(config) != before


class Counting:
    """Two stages, the second made of the first, that count how often they run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.fails = False
        first = Stage("first", "first", "", (), lambda c: {"name": c.name, "seed": c.seed})
        second = Stage("second", "second", "", ("first",), lambda c: {})
        monkeypatch.setattr(chain, "_STAGES", (first, second))
        monkeypatch.setattr(Stage, "load", lambda stage: lambda *call: self.run(stage.name, *call))

    def run(self, name: str, config: RunConfig, inputs: Any, out: Path, progress: Any) -> Outcome:
        self.runs.append(name)
        with (out / "text").open("a") as file:
            file.write(f"{name}\n")
        if self.fails and name == "second":
            raise ConfigError("second: not today")
        return Outcome({})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_what_is_finished_is_not_run_again(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    made = bring_up_to_date(config, ("second",), Silent())
    again = bring_up_to_date(config, ("second",), Silent())
    assert counting.runs == ["first", "second"]
    assert made["second"].manifest == again["second"].manifest


def test_equal_content_stops_what_a_change_would_run(counting: Counting, tmp_path: Path) -> None:
    """A changed setting that makes the same content: what is made of that content is up to date."""
    bring_up_to_date(read(f"root={tmp_path}"), ("second",), Silent())
    bring_up_to_date(read(f"root={tmp_path}", "seed=5"), ("second",), Silent())
    assert counting.runs == ["first", "second", "first"]


def test_a_failed_stage_keeps_what_it_had_and_the_stages_before_it(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    counting.fails = True
    with pytest.raises(ConfigError, match="not today"):
        bring_up_to_date(config, ("second",), Silent())
    assert [planned.artifact is not None for planned in plan(config, ("second",))] == [True, False]
    counting.fails = False
    made = bring_up_to_date(config, ("second",), Silent())
    assert counting.runs == ["first", "second", "second"]
    assert (made["second"].path / "text").read_text() == "second\nsecond\n"  # it went on in the same folder


def test_a_damaged_artifact_counts_as_missing(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    made = bring_up_to_date(config, ("second",), Silent())
    os.truncate(made["first"].path / "text", 1)
    bring_up_to_date(config, ("second",), Silent())
    assert counting.runs == ["first", "second", "first"]
    assert (made["first"].path / "text").read_text() == "first\n"


def test_planning_makes_nothing(counting: Counting, tmp_path: Path) -> None:
    planned = plan(read(f"root={tmp_path}"), ("second",))
    assert [(p.stage.name, p.draft is None, p.artifact) for p in planned] == [
        ("first", False, None),
        ("second", True, None),
    ]
    assert not list(tmp_path.iterdir()) and counting.runs == []
