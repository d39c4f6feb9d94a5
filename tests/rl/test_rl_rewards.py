"""Rewards: what functions get, what they may return, how values add up, and what a run's key has of them."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.rl.batch import RewardBatch, RewardError, TrainerState, last_text
from lifecycle.rl.reward import RewardConfig
from lifecycle.rl.rewards import Rewards


def rewards_of(*trees: dict[str, Any]) -> Rewards:

    return Rewards([validate(RewardConfig, tree) for tree in trees])


def batch_of(completions: Sequence[Any], **columns: Sequence[Any]) -> RewardBatch:
    prompts = [f"prompt {place}" for place in range(len(completions))]
    ids = [list(range(len(str(completion)))) for completion in completions]
    return RewardBatch(prompts, completions, ids, columns, TrainerState(7, 100))


FUNCTIONS = """
import asyncio
import helper_of_rewards

def length(completions, **kwargs):
    kwargs["log_extra"]("doubled", [2 * len(c) for c in completions])
    kwargs["log_metric"]("rows", len(completions))
    assert kwargs["trainer_state"].global_step == 7 and kwargs["trainer_state"].max_steps == 100
    assert set(kwargs) == {"prompts", "completion_ids", "gold", "trainer_state", "log_extra", "log_metric"}
    return [helper_of_rewards.half(len(c)) for c in completions]

def partly(completions, gold):
    return [None if right is None else completion == right for completion, right in zip(completions, gold)]

async def later(prompts, completion_ids):
    await asyncio.sleep(0)
    return [len(ids) for ids in completion_ids]

def fails(completions, gold):
    return [1 / len(c) for c in completions]

def of_groups(completions):
    if len(completions) > 1:
        raise RuntimeError("together")
    return [0.0]

def short(completions): return [0.0]
def number(completions): return 1.0
def nan(completions): return [0.0, float("nan")]
def text(completions): return [0.0, "1"]
def needs(completions, nothing_like_it): return [0.0] * len(completions)

def arrays(completions):
    import numpy as np
    return np.linspace(0, 1, len(completions), dtype=np.float32)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "helper_of_rewards.py").write_text("def half(x): return x / 2\n", encoding="utf-8")
    (folder / "mine.py").write_text(FUNCTIONS, encoding="utf-8")
    return str(folder / "mine.py")


def test_values_are_weighed_and_what_says_nothing_is_left_out(functions: str) -> None:
    rewards = rewards_of(
        {"name": "exact", "answer": "gold", "weight": 2.0},
        {"function": f"{functions}:length", "weight": 0.1},
        {"function": f"{functions}:partly", "label": "mine"},
        {"function": f"{functions}:later", "weight": -1},
    )
    assert rewards.names == ["exact", "length", "mine", "later"]
    assert rewards.columns is None
    scores = rewards.score(batch_of(["ab", "cd"], gold=["ab", "xy"]))
    assert scores.values == {"exact": [1.0, 0.0], "length": [1.0, 1.0], "mine": [1.0, 0.0], "later": [2.0, 2.0]}
    assert scores.totals == pytest.approx([2.0 + 0.1 + 1.0 - 2.0, 0.1 - 2.0], abs=0)
    assert scores.extra == {"doubled": [4, 4]}
    assert scores.metrics == {"rows": 2}


def test_a_completion_of_which_nothing_is_said_has_no_total(functions: str) -> None:
    rewards = rewards_of({"function": f"{functions}:partly"})
    assert rewards.columns == {"gold"}
    scores = rewards.score(batch_of(["a", "b", "c"], gold=["a", None, "b"]))
    assert [scores.totals[0], scores.totals[2]] == [1.0, 0.0]
    assert math.isnan(scores.totals[1])
    assert scores.unscored == 1


def test_a_function_that_raises_is_named_with_the_row(functions: str) -> None:
    batch = batch_of(["a", "", "c"], gold=["1", "2", "3"])
    with pytest.raises(
        RewardError, match=r"mine.py:fails raised ZeroDivisionError.*completion 1 alone.*'prompt 1'.*'2'"
    ):
        rewards_of({"function": f"{functions}:fails"}).score(batch)
    with pytest.raises(RewardError, match="of_groups raised RuntimeError: together; on no completion alone"):
        rewards_of({"function": f"{functions}:of_groups"}).score(batch)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("short", "returned 1 values for 2"), ("number", "returned float, expected a list"),
        ("nan", r"returned nan \(float\) for completion 1.*'prompt 1'"),
        ("text", r"returned '1' \(str\) for completion 1"),
        ("needs", "no column 'nothing_like_it' for the reward"),
    ],
)  # fmt: skip
def test_values_that_are_none_end_the_run(functions: str, name: str, fault: str) -> None:
    with pytest.raises(RewardError, match=fault):
        rewards_of({"function": f"{functions}:{name}"}).score(batch_of(["a", "b"]))


def test_arrays_and_booleans_are_numbers(functions: str) -> None:
    scores = rewards_of({"function": f"{functions}:arrays"}).score(batch_of(["a", "b"]))
    assert scores.values == {"arrays": [0.0, 1.0]}
    assert all(type(value) is float for value in scores.totals)
    assert np.isfinite(scores.totals).all()


def test_functions_are_found_hashed_and_refused_without_running(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise SystemError('ran')\ndef good(completions): return []\n", encoding="utf-8")
    [before] = rewards_of({"function": f"{file}:good"}).fingerprint()
    assert before["function"] == "good"
    file.write_text("def good(completions): return [0.0] * len(completions)\n", encoding="utf-8")
    [after] = rewards_of({"function": f"{file}:good"}).fingerprint()
    assert before["sha256"] != after["sha256"]
    with pytest.raises(ConfigError, match="did you mean 'good'"):
        rewards_of({"function": f"{file}:god"}).fingerprint()
    with pytest.raises(ConfigError, match="there is no file"):
        rewards_of({"function": f"{tmp_path}/none.py:good"}).fingerprint()
    with pytest.raises(ConfigError, match="there is no module"):
        rewards_of({"function": "no.such.module:good"}).fingerprint()
    assert rewards_of({"function": "math:fsum"}).names == ["fsum"]
    file.write_text("def good(:\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no Python"):
        rewards_of({"function": f"{file}:good"}).fingerprint()
    assert str(tmp_path) not in sys.path  # nothing was run


def test_a_fingerprint_has_settings_and_weights_but_no_place(functions: str) -> None:
    prints = rewards_of({"name": "maths", "tolerance": 0.5}, {"function": f"{functions}:length"}).fingerprint()
    assert prints[0]["tolerance"] == 0.5
    assert "label" not in prints[0]
    assert functions not in str(prints)


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"name": "math"}, "did you mean 'maths'"), ({}, "name is missing"),
        ({"name": "maths", "tolerence": 1}, "no such setting"),
        ({"name": "soft_overlong", "max_completion_len": 5, "soft_punish_cache": 6}, "exceeds max_completion_len"),
        ({"function": "mine.py"}, "function"), ({"name": "maths", "weight": float("nan")}, "weight"),
        ({"name": "judge", "base_url": "http://x/v1", "model": "m", "template": "rate"}, "would not see it"),
        ({"name": "repetition_penalty", "max_penalty": 1}, "max_penalty"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tree: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        rewards_of(tree)


def test_names_repeat_only_with_labels() -> None:
    with pytest.raises(ConfigError, match="give one of them a `label`"):
        rewards_of({"name": "maths"}, {"name": "maths"})
    assert rewards_of({"name": "maths"}, {"name": "maths", "label": "loose", "tolerance": 0.1}).names == [
        "maths",
        "loose",
    ]
    with pytest.raises(ConfigError, match="at least one"):
        Rewards([])


def test_a_row_without_its_answer_is_a_fault_of_the_row() -> None:
    rewards = rewards_of({"name": "maths", "answer": "solution"})
    assert "no column 'solution'" in rewards.row_problem({"answer": "1"})
    assert "expected text" in rewards.row_problem({"solution": None})
    assert rewards.row_problem({"solution": "1"}) == ""
    with pytest.raises(RewardError, match=r"no column 'solution'.*prompt 0"):
        rewards.score(batch_of(["1"], answer=["1"]))


def test_a_column_of_numbers_is_a_reward() -> None:
    rewards = rewards_of({"name": "column", "column": "given", "weight": 2}, {"name": "exact"})
    scores = rewards.score(batch_of(["a", "b"], given=[0.5, None], answer=["a", "b"]))
    assert scores.totals == [2.0, 1.0]
    for value in (True, "1", float("nan")):
        with pytest.raises(RewardError, match="is no finite number"):
            rewards.score(batch_of(["a"], given=[value], answer=["a"]))
    assert "no column 'given'" in rewards.row_problem({"answer": "a"})


def test_faults_of_verifiers_are_counted() -> None:
    scores = rewards_of({"name": "regex"}).score(batch_of(["a" * 40 + "b", "x"], answer=["^(a+)+$", "x"]))
    assert scores.totals == [0.0, 1.0]
    assert scores.notes == ["reward regex: 1 of 2 completions: CPU time"]


def test_of_messages_the_last_answer_counts() -> None:
    said = [
        {"role": "assistant", "content": "first"}, {"role": "tool", "content": "noise"},
        {"role": "assistant", "content": [{"type": "text", "text": "la"}, {"type": "text", "text": "st"}]},
    ]  # fmt: skip
    assert last_text(said) == "last"
    assert last_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""
    assert rewards_of({"name": "exact"}).score(batch_of([said], answer=["last"])).totals == [1.0]
    with pytest.raises(RewardError, match="1 completions, but answer 2"):
        batch_of(["a"], answer=["a", "b"])


@given(st.lists(st.sampled_from(["1", "2", "x", r"\frac12"]), min_size=1, max_size=6), st.randoms())
def test_a_batch_in_another_order_has_the_same_values(answers: list[str], random: Any) -> None:
    rewards = rewards_of({"name": "last_number"}, {"name": "tags", "tags": ["a"], "weight": 0.5})
    rows = [(f"it is {answer}", "1") for answer in answers]
    order = random.sample(range(len(rows)), len(rows))
    one = rewards.score(batch_of([rows[i][0] for i in range(len(rows))], answer=["1"] * len(rows))).totals
    other = rewards.score(batch_of([rows[i][0] for i in order], answer=["1"] * len(rows))).totals
    assert other == [one[i] for i in order]
