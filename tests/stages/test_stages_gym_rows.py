"""Tasks of reasoning-gym in a run file: prompts on two sides, checked before anything is trained."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.cli.doctor import doctor
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.rl import gym
from lifecycle.stages import gym_rows, keys, rows
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.testing.notes import Notes
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.config import GymTask, RowsConfig
from lifecycle.text.row_files import RowError, read_rows

with_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)
RUN = """
name: run
tokenizer: {kind: bytes}
rows: {reasoning_gym: [{task: leg_counting, size: 40, held_out: 10, settings: {max_animals: 3}}]}
model:
  {vocab_size: 261, d_model: 8, d_ff: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8, max_seq_len: 512}
train:
  legs:
    {objective: grpo, rewards: [{name: reasoning_gym}], epochs: 1, max_prompt_tokens: 500, max_completion_tokens: 4,
     seq_len: 504, prompts_per_step: 2, group_size: 2, global_batch_size: 4}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


@pytest.fixture
def inputs(tmp_path: Path) -> Any:
    (tmp_path / "tokenizer").mkdir()
    ByteTokenizer().save(tmp_path / "tokenizer")
    return {"tokenizer": SimpleNamespace(path=tmp_path / "tokenizer")}


def sides(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {side: [row for _, row in read_rows(out / f"prompts-{side}.jsonl")] for side in ("train", "heldout")}


@with_gym
def test_tasks_become_prompts_on_two_sides(run: Path, inputs: Any, tmp_path: Path) -> None:
    config = load_config(RunConfig, run)
    assert config.has_rows and build_graph(config)["legs"].lacks is None
    stats = rows.run(config, inputs, tmp_path, Silent()).stats
    made = sides(tmp_path)
    kept = stats["reasoning_gym"][0]["kept"]
    assert (len(made["train"]), len(made["heldout"])) == (kept, 10) and 30 < kept <= 40
    seeds = {side: {row["reasoning_gym"]["seed"] for row in own} for side, own in made.items()}
    assert max(seeds["train"]) < gym.HELD_OUT_SEEDS <= min(seeds["heldout"])
    asked = {side: {row["prompt"][-1]["content"] for row in own} for side, own in made.items()}
    assert not asked["train"] & asked["heldout"]
    assert stats["epoch_rows"]["legs"] == kept / 2 * 4
    again = tmp_path / "again"
    again.mkdir()
    rows.run(config, inputs, again, Silent())
    assert sides(again) == made


@with_gym
def test_the_doctor_shows_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(run, "legs", rows=1)
    out = capsys.readouterr().out
    assert "count how many legs" in out
    assert "of 40 prompts kept" in out and "heldout rows: 10 of 10 rows kept" in out
    assert "sampling: " in out and "suggested: train.legs.max_prompt_tokens=" in out


@with_gym
def test_what_reasoning_gym_refuses_is_told_before_anything_is_trained(run: Path, inputs: Any, tmp_path: Path) -> None:
    for task, says in (
        ("{task: leg_count}", "rows.reasoning_gym, leg_count, seed .*did you mean 'leg_counting'"),
        ("{task: leg_counting, settings: {animals: 3}}", "leg_counting, seed .*refuses its settings.*animals"),
    ):
        with pytest.raises(ConfigError, match=says):
            rows.run(load_config(RunConfig, run, [f"rows.reasoning_gym=[{task}]"]), inputs, tmp_path, Silent())


def test_the_key_has_what_decides_the_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(task: str) -> Any:
        return keys.rows(load_config(RunConfig, run, [f"rows.reasoning_gym=[{task}]"]))

    monkeypatch.setattr(keys, "installed_version", lambda: "1")
    monkeypatch.setattr(gym, "installed_version", lambda: "1")
    given = "task: a, size: 5, held_out: 2, seed: 1, settings: {n: 1}"
    before = key(f"{{{given}}}")
    changes = {"task: a": "task: b", "size: 5": "size: 6", "held_out: 2": "held_out: 3", "seed: 1": "seed: 2",
               "n: 1": "n: 2"}  # fmt: skip
    for old, new in changes.items():
        assert key(f"{{{given.replace(old, new)}}}") != before, new
    assert key(f"{{{given}, system: null}}") != before
    config = load_config(RunConfig, run)
    trained = keys.training(config, "legs")
    monkeypatch.setattr(gym, "installed_version", lambda: "2")
    assert keys.training(config, "legs") != trained
    monkeypatch.setattr(keys, "installed_version", lambda: "2")
    assert key(f"{{{given}}}") != before


def test_without_the_extra_a_run_says_so_before_anything_is_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise gym.PackageNotFoundError(name)

    monkeypatch.setattr(gym, "version", missing)
    config = load_config(RunConfig, run)
    with pytest.raises(ConfigError, match=r"pip install 'lifecycle\[reasoning-gym\]'"):
        keys.rows(config)
    with pytest.raises(ConfigError, match=r"pip install 'lifecycle\[reasoning-gym\]'"):
        next(gym.gym_rows(GymTask.model_validate({"task": "leg_counting"}), Silent()))


def few(task: GymTask, progress: object, *, is_held_out: bool = False) -> Iterator[dict[str, Any]]:
    """A task with 20 questions, of which a held-out row asks one and a second task the same ones again."""
    del progress
    for seed in range(task.seed, task.seed + (1 if is_held_out else task.size)):
        yield {"prompt": f"question {seed % 20}", "answer": "", "reasoning_gym": {"seed": seed}}


def test_what_a_held_out_row_asks_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym_rows, "gym_rows", few)
    task = {"task": "few", "size": 40}
    own, [report, second] = gym_rows.make_gym_rows(settings(0.15, task, task | {"seed": 38, "size": 20}), Silent())
    assert report.dropped == {gym_rows.HELD_OUT_TOO: 4}
    assert report.examples[0] == f"few, seed 0: {gym_rows.HELD_OUT_TOO}"
    assert second.dropped == {gym_rows.HELD_OUT_TOO: 2, "doubled": 1}
    assert {row["prompt"] for row in own["heldout"]} == {"question 0", "question 18"}
    assert len(own["train"]) == 36 + 17
    with pytest.raises(RowError, match=r"few: 10.0% of the rows would be dropped.*more different questions"):
        gym_rows.make_gym_rows(settings(0.05, task | {"seed": 38}, task), Silent())


def settings(max_dropped: float, *tasks: dict[str, Any]) -> RowsConfig:
    return RowsConfig.model_validate({"reasoning_gym": tasks, "max_dropped": max_dropped})


def test_tasks_that_nobody_reads_and_stages_without_prompts_are_refused(run: Path, tmp_path: Path) -> None:
    lacking = load_config(RunConfig, run, ["rows={}"])
    with pytest.raises(ConfigError, match=r"list files in rows.prompts, or name tasks .* in rows.reasoning_gym$"):
        needed(build_graph(lacking), ["legs"])
    sft = "train={chat: {objective: sft, steps: 1, seq_len: 16, global_batch_size: 2}}"
    with pytest.raises(ConfigError, match="no training stage reads prompts rows; remove it"):
        load_config(RunConfig, run, [sft])
    with pytest.raises(ConfigError, match="rows made from reasoning_gym have none"):
        load_config(RunConfig, run, ["rows.prompts={a.jsonl: 1, b.jsonl: 2}"])
    with pytest.raises(ConfigError, match=r"reasoning_gym\.0\.held_out"):
        load_config(RunConfig, run, ["rows.reasoning_gym=[{task: a, held_out: 0}]"])
    with pytest.raises(ConfigError, match=r"no such setting; did you mean 'settings'"):
        load_config(RunConfig, run, ["rows.reasoning_gym=[{task: a, setting: {}}]"])


@with_gym
def test_prompts_of_files_are_learned_beside_them(run: Path, inputs: Any, tmp_path: Path) -> None:
    row = next(gym.gym_rows(GymTask.model_validate({"task": "chain_sum", "seed": 7}), Silent()))
    own = [row | {"prompt": f"{n}: {row['prompt'][-1]['content']}"} for n in range(4)]
    rows.write_rows(tmp_path / "own.jsonl", own)
    notes = Notes()
    config = load_config(RunConfig, run, [f"rows.prompts={tmp_path / 'own.jsonl'}", "rows.max_dropped=0.2"])
    stats = rows.run(config, inputs, tmp_path, notes).stats
    made = sides(tmp_path)
    assert len(made["train"]) == stats["reasoning_gym"][0]["kept"] + stats["own"]["prompts"]["train"]
    assert len(made["heldout"]) == 10 + stats["own"]["prompts"]["heldout"]
