"""Tasks of reasoning-gym: rows from seeds, and scores by the task itself. They need the extra, and a closed process."""

import importlib.util
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.isolation.confine import unavailable
from lifecycle.core.progress import Silent
from lifecycle.rl.batch import RewardBatch, RewardError
from lifecycle.rl.gym import COLUMN, gym_rows, tagged
from lifecycle.rl.reward import RewardConfig
from lifecycle.rl.rewards import Rewards
from lifecycle.text.config import GymTask

has_gym = importlib.util.find_spec("reasoning_gym") is not None
with_gym = pytest.mark.skipif(not has_gym, reason="reasoning-gym is not installed: uv sync --extra reasoning-gym")
closed = pytest.mark.skipif(bool(unavailable()), reason=f"code cannot be closed off here: {unavailable()}")


def totals(outputs: list[str], rows: list[dict[str, Any]], **settings: Any) -> list[float]:
    batch = RewardBatch(
        [row["prompt"] for row in rows], outputs, [[0]] * len(rows), {COLUMN: [row[COLUMN] for row in rows]}
    )
    return Rewards([validate(RewardConfig, {"name": "reasoning_gym", **settings})]).score(batch).totals


def made(task: dict[str, Any], **sides: bool) -> list[dict[str, Any]]:
    return list(gym_rows(validate(GymTask, task), Silent(), **sides))


@with_gym
def test_rows_are_the_same_every_time_and_never_held_out_too() -> None:
    task = {"task": "chain_sum", "size": 20, "held_out": 10, "settings": {"min_terms": 2, "max_terms": 3}}
    rows, held_out = made(task), made(task, is_held_out=True)
    assert (len(rows), len(held_out)) == (20, 10)
    assert made(task) == rows
    assert not {row[COLUMN]["seed"] for row in rows} & {row[COLUMN]["seed"] for row in held_out}
    assert made(task | {"seed": 5})[:15] == rows[5:]
    assert rows[0]["prompt"][0]["role"] == "system"
    assert [m["role"] for m in made(task | {"system": None})[0]["prompt"]] == ["user"]


@with_gym
@closed
@pytest.mark.parametrize("task", ["countdown", "isomorphic_strings"])  # the second hashes strings as it makes an item
def test_the_tasks_own_scorer_counts_and_cannot_be_attacked(task: str) -> None:
    rows = made({"task": task, "size": 3})
    right = [f"well: <answer>{row['answer']}</answer>" for row in rows]
    assert totals(right, rows) == [1.0] * 3
    attacks = ["<answer>__import__('os').kill(1, 9)</answer>", "<answer>9**9**9**9**9</answer>", rows[2]["answer"]]
    assert [total < 1.0 for total in totals(attacks, rows)] == [True] * 3
    assert totals([rows[0]["answer"]], rows[:1], tag=None) == [1.0]


@with_gym
def test_what_reasoning_gym_refuses_is_a_fault_of_the_config() -> None:
    with pytest.raises(ConfigError, match="did you mean 'leg_counting'"):
        made({"task": "leg_count"})
    with pytest.raises(ConfigError, match="refuses its settings"):
        made({"task": "chain_sum", "settings": {"no_such": 1}})


@pytest.mark.skipif(has_gym, reason="reasoning-gym is installed")
def test_without_the_extra_the_fix_is_told() -> None:
    with pytest.raises(ConfigError, match=r"lifecycle\[reasoning-gym\]"):
        made({"task": "chain_sum"})


def test_rows_of_another_origin_are_refused() -> None:
    with pytest.raises(RewardError, match="needs rows of reasoning-gym"):
        totals(["<answer>1</answer>"], [{"prompt": "p", COLUMN: {"seed": 1}}])


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("<answer> 5 </answer>", "5"), ("<answer>4</answer> no, <answer>5</answer>", "5"), ("5", None),
        ("<answer>5", None),
        ("</answer>5<answer>", None), ("<answer></answer>", ""),
    ],
)  # fmt: skip
def test_the_answer_stands_between_tags(output: str, answer: str | None) -> None:
    assert tagged(output, "answer") == answer
