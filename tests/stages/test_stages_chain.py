"""What runs a graph: what is finished is not run again, what failed goes on, and planning makes nothing."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core import file_hashes
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.stages import chain
from lifecycle.stages.chain import bring_up_to_date, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Outcome, Stage
from lifecycle.testing.notes import Notes

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


def read(*overrides: str) -> RunConfig:
    return load_config(RunConfig, DEBUG, overrides)


class Counting:
    """Two stages, the second made of the first, that count how often they run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.inputs: dict[str, Path] = {}  # of the stage that ran last
        self.further = ""  # another file that each stage writes
        self.fails = False
        first = Stage("first", "counting", (), lambda c: {"name": c.name, "seed": c.seed})
        second = Stage("second", "counting", ("first",), lambda c: {})
        monkeypatch.setattr(chain, "build_graph", lambda config: {"first": first, "second": second})
        monkeypatch.setattr(Stage, "load", lambda stage: lambda *call: self.run(stage.name, *call))

    def run(self, name: str, config: RunConfig, inputs: Any, out: Path, progress: Any) -> Outcome:
        self.runs.append(name)
        self.inputs = {stage: artifact.path for stage, artifact in inputs.items()}
        for file in filter(None, ("text", self.further)):
            with (out / file).open("a") as lines:
                lines.write(f"{name}\n")
        if self.fails and name == "second":
            raise ConfigError("second: not today")
        return Outcome({})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_what_is_finished_is_not_run_again(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    prepared: list[int] = []
    made = bring_up_to_date(config, ("second",), Silent(), lambda: prepared.append(1))
    again = bring_up_to_date(config, ("second",), Silent(), lambda: prepared.append(2))
    assert counting.runs == ["first", "second"]
    assert prepared == [1]  # once, and not where nothing runs
    assert made["second"].manifest == again["second"].manifest


def test_equal_content_stops_what_a_change_would_run(counting: Counting, tmp_path: Path) -> None:
    """A changed setting that makes the same content: what is made of that content is up to date."""
    bring_up_to_date(read(f"root={tmp_path}"), ("second",), Silent())
    bring_up_to_date(read(f"root={tmp_path}", "seed=5"), ("second",), Silent())
    assert counting.runs == ["first", "second", "first"]


def test_what_a_stage_only_measures_on_is_there_and_never_makes_it_again(
    counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Stage("rows", "counting", (), lambda c: {"seed": c.seed})
    model = Stage("model", "counting", (), lambda c: {}, measured=("rows",))
    monkeypatch.setattr(chain, "build_graph", lambda config: {"rows": rows, "model": model})
    made = bring_up_to_date(read(f"root={tmp_path}"), ("model",), Silent())
    assert counting.runs == ["rows", "model"] and counting.inputs == {"rows": made["rows"].path}
    counting.further = "more"  # other content
    again = bring_up_to_date(read(f"root={tmp_path}", "seed=5"), ("model",), Silent())
    assert counting.runs == ["rows", "model", "rows"] and again["model"].path == made["model"].path
    shutil.rmtree(again["model"].path)
    (again["rows"].path / "text").write_text("ROWS\n")
    bring_up_to_date(read(f"root={tmp_path}", "seed=5"), ("model",), Silent())
    assert counting.runs[3:] == ["rows", "model"], "damaged rows are made again before they are read"


def test_a_failed_stage_keeps_what_it_had_and_the_stages_before_it(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    counting.fails = True
    with pytest.raises(ConfigError, match="not today"):
        bring_up_to_date(config, ("second",), Silent())
    assert [state.artifact is not None for state in states(config, ("second",))] == [True, False]
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


def test_an_input_edited_in_place_is_made_again_before_it_is_used(counting: Counting, tmp_path: Path) -> None:
    """At equal length: only its content tells. What was made of it before keeps the content that it was made of."""
    config, told = read(f"root={tmp_path}"), Notes()
    made = bring_up_to_date(config, ("second",), Silent())
    file = made["first"].path / "text"
    file.write_text("FIRST\n")
    bring_up_to_date(config, ("second",), told)
    assert counting.runs == ["first", "second"] and not told.notes  # nothing uses it
    shutil.rmtree(made["second"].path)
    again = bring_up_to_date(config, ("second",), told)
    assert counting.runs == ["first", "second", "first", "second"]
    assert (
        file.read_text() == "first\n" and again["second"].manifest.input_hashes["first"] == again["first"].content_hash
    )
    assert [note for note in told.notes if "first-" in note and "text changed after it was finished" in note]


def test_intact_files_of_a_damaged_artifact_are_there_for_its_stage(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    counting.further = "checkpoint"
    made = bring_up_to_date(config, ("second",), Silent())
    (made["first"].path / "text").write_text("FIRST\n")
    shutil.rmtree(made["second"].path)
    again = bring_up_to_date(config, ("second",), Silent())
    assert (again["first"].path / "checkpoint").read_text() == "first\nfirst\n"


def test_contents_are_hashed_once(counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an artifact is finished; later only what looks changed."""
    config, hashed = read(f"root={tmp_path}"), []
    sha256 = file_hashes._sha256
    monkeypatch.setattr(file_hashes, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    made = bring_up_to_date(config, ("second",), Silent())
    assert hashed == ["text", "text"]
    shutil.rmtree(made["second"].path)
    bring_up_to_date(config, ("second",), Silent())
    assert hashed == ["text"] * 3  # the new one
    (made["first"].path / "text").touch()
    shutil.rmtree(made["second"].path)
    bring_up_to_date(config, ("second",), Silent())
    assert hashed == ["text"] * 5 and counting.runs == ["first", "second", "second", "second"]


def test_what_is_remembered_of_hashes_may_be_lost_or_damaged(counting: Counting, tmp_path: Path) -> None:
    config = read(f"root={tmp_path}")
    for damage in ("", "{", "[1]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["x", 2, 3, "y"]}'):
        made = bring_up_to_date(config, ("second",), Silent())
        (config.folder / file_hashes.REMEMBERED).write_text(damage)
        shutil.rmtree(made["second"].path)
    assert counting.runs == ["first"] + ["second"] * 6


def test_planning_makes_nothing(counting: Counting, tmp_path: Path) -> None:
    there = states(read(f"root={tmp_path}"), ("second",))
    assert [(state.stage.name, state.draft is None, state.artifact) for state in there] == [
        ("first", False, None),
        ("second", True, None),
    ]
    assert not list(tmp_path.iterdir()) and counting.runs == []


def test_a_target_that_the_run_does_not_have_is_named_with_the_nearest(counting: Counting, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this run has no stage 'secand'; did you mean 'second'\?"):
        bring_up_to_date(read(f"root={tmp_path}"), ("secand",), Silent())
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_host_has_is_waited_for_and_then_named(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    chain._require_seen([tmp_path / "here"], limit_s=0.0)
    late = threading.Timer(0.2, (tmp_path / "late").touch)
    late.start()
    chain._require_seen([tmp_path / "late"], limit_s=60.0)
    late.join()
    with pytest.raises(ConfigError, match=r"there: process 0 has this file, and it is not to be seen .* mount the"):
        chain._require_seen([tmp_path / "here", tmp_path / "there"], limit_s=0.0)
