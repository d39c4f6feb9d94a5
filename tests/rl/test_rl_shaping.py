"""Rewards of form and length, against TRL's own functions."""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import validate
from lifecycle.rl.batch import RewardBatch
from lifecycle.rl.reward import RewardConfig
from lifecycle.rl.rewards import Rewards

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rewards.json").read_text(encoding="utf-8"))


def values(
    tree: dict[str, Any], completions: list[Any], ids: list[list[int]] | None = None, **columns: Any
) -> list[float]:
    ids = [[0]] * len(completions) if ids is None else ids
    batch = RewardBatch(["p"] * len(completions), completions, ids, columns)
    return Rewards([validate(RewardConfig, tree)]).score(batch).totals


def test_thoughts_are_formed_as_trl_says() -> None:
    texts = GOLDEN["thoughts"]
    assert values({"name": "think_format"}, texts) == GOLDEN["think_format"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert values({"name": "think_format"}, messages) == GOLDEN["think_format"]
    other = [text.replace("<think>", "[t]").replace("</think>", "[/t]") for text in texts]
    assert values({"name": "think_format", "opening": "[t]", "closing": "[/t]"}, other) == GOLDEN["think_format"]


@pytest.mark.parametrize("case", GOLDEN["soft_overlong"])
def test_long_completions_are_punished_as_by_trl(case: str) -> None:
    longest, cache = map(int, case.split(","))
    tree = {"name": "soft_overlong", "max_completion_len": longest, "soft_punish_cache": cache}
    assert values(tree, [""] * len(GOLDEN["ids"]), GOLDEN["ids"]) == GOLDEN["soft_overlong"][case]


@pytest.mark.parametrize("case", GOLDEN["repetition_penalty"])
def test_repetitions_are_punished_as_by_trl(case: str) -> None:
    size, penalty = case.split(",")
    tree = {"name": "repetition_penalty", "ngram_size": int(size), "max_penalty": float(penalty)}
    assert values(tree, [""] * len(GOLDEN["ids"]), GOLDEN["ids"]) == GOLDEN["repetition_penalty"][case]


def test_maths_is_scaled_by_length_as_by_trl() -> None:
    pairs = GOLDEN["pairs"][:10]
    completions, golds = [rf"So it is $\boxed{{{left}}}$." for left, _ in pairs], [right for _, right in pairs]
    ours = values({"name": "cosine_maths", "max_len": 20}, completions, GOLDEN["ids"][:10], answer=golds)
    assert ours == pytest.approx(GOLDEN["cosine"], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>\n<answer>b</answer>\n", 1.0), ("<think>a</think>x<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0), ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0), ("<think>a</think>", 0.0), ("", 0.0),
    ],
)  # fmt: skip
def test_tags_stand_in_order_and_once(text: str, expected: float) -> None:
    assert values({"name": "tags", "tags": ["think", "answer"]}, [text]) == [expected]
