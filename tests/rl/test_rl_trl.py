"""From completions to advantages and metrics, as TRL's trainers make them (`golden/make_trl_rewards_golden.py`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.core.config import validate
from lifecycle.rl.batch import RewardBatch
from lifecycle.rl.config import GrpoConfig, RlooConfig, RolloutConfig
from lifecycle.rl.packed import Made, packed
from lifecycle.rl.rollouts import Scored
from lifecycle.rl.sampling import Prompt, Rollout
from lifecycle.training.objectives.policy import ADVANTAGES, REFERENCE

TRL: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "trl_rewards.json").read_text())
SETTINGS: dict[str, Any] = {
    "steps": 1, "seq_len": 144, "global_batch_size": 2, "prompts_per_step": 4, "group_size": TRL["samples"],
    "max_prompt_tokens": 8, "max_completion_tokens": 16,
}  # fmt: skip
NAMES: dict[str, str] = {"mask_truncated_completions": "mask_truncated"}
REWARDS = [
    {"name": "column", "column": f"said{number}", "label": f"said{number}", "weight": weight}
    for number, weight in enumerate(TRL["weights"])
]
OF_LOSS = {"num_tokens"}  # of the whole run


def rollouts() -> list[Rollout]:
    made = []
    for place, (one, logprobs) in enumerate(zip(TRL["completions"], TRL["policy"], strict=True)):
        prompt, ids = one["ids"][: one["prompt"]], one["ids"][one["prompt"] :]
        made.append(Rollout(Prompt(place // TRL["samples"], prompt, ""), ids, logprobs, "", one["is_cut"]))
    return made


def scored(said: list[Rollout], settings: RolloutConfig) -> Scored:
    columns = {f"said{number}": values for number, values in enumerate(TRL["said"])}
    batch = RewardBatch([""] * len(said), [""] * len(said), [one.ids for one in said], columns)
    assert settings.reward_functions is not None
    return Scored(said, settings.reward_functions.score(batch), 0, 0)


def with_reference(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with the initial model's log-probabilities at all tokens of completions."""
    column = np.zeros(batch["tokens"].shape, np.float32)
    for row, place in np.argwhere(batch["group_mask"] > 0):
        number = batch["group_ids"][row, place]
        begin = int(np.argmax(batch["segment_ids"][row] == place + 1)) + TRL["completions"][number]["prompt"] - 1
        values = TRL["reference"][number]
        column[row, begin : begin + len(values)] = values
    return batch | {REFERENCE: column}


@pytest.mark.parametrize("name", TRL["cases"])
def test_advantages_and_metrics_are_those_of_trl(name: str) -> None:
    case = TRL["cases"][name]
    tree = SETTINGS | {"rewards": REWARDS}
    tree |= {NAMES.get(key, str(key)): value for key, value in case["settings"].items() if key != "scale_rewards"}
    is_rloo = name.startswith("rloo")
    settings = validate(RlooConfig, tree) if is_rloo else validate(GrpoConfig, tree | {"advantage": name})
    said = rollouts()
    made = Made(0, 0, 0, [], with_reference(packed(said, settings)), lambda: scored(said, settings))
    made.finish(settings)
    found = np.zeros(len(said))
    for row, place in np.argwhere(made.batch["group_mask"] > 0):
        found[made.batch["group_ids"][row, place]] = made.batch[ADVANTAGES][row, place, 0]
    np.testing.assert_allclose(found, case["advantages"], rtol=1e-4, atol=1e-5)
    for metric, expected in case["metrics"].items():
        if metric == "frac_reward_zero_std":  # ours is of groups and rewards; TRL's of what advantages divide by
            assert made.metrics[metric] == 0.25
        elif metric not in OF_LOSS:
            assert made.metrics[metric] == pytest.approx(expected, rel=1e-4, abs=1e-6), metric
    assert ("kl" in made.metrics) == ("kl" in case["metrics"])
