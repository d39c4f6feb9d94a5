"""Rewards and values by models: advantages of tokens, a stage that learns both, and a reward model's score."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.model.decoder import forward
from lifecycle.model.stacks import SCORE
from lifecycle.rl.config import PpoConfig
from lifecycle.rl.hook import LogRollouts
from lifecycle.rl.returns import with_returns
from lifecycle.rl.reward_stage import NAME, model_reward
from lifecycle.rl.samples import Samples
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import HostBatch
from lifecycle.training.group_rows import Group, packed_groups
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.policy import ADVANTAGES, TOKEN_ADVANTAGES
from lifecycle.training.objectives.ppo import RETURNS, VALUES
from lifecycle.training.policy import ValueConfig
from tests.rl.toy_policy import MODEL, batches_of, one_device, prompts, sampler_of, settings

SCORED = MODEL.model_copy(update={"has_score": True})


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(SCORED)


def segments(batch: HostBatch) -> list[tuple[int, np.ndarray, float]]:
    """Each segment's row, the places of its learned targets, and its value in the column `advantages`."""
    found = []
    for row, place in np.argwhere(batch["group_mask"] > 0):
        where = np.flatnonzero((batch["segment_ids"][row] == place + 1) & (batch["loss_mask"][row] > 0))
        found.append((int(row), where, float(batch[ADVANTAGES][row, place, 0])))
    return found


SHARES = st.sampled_from([0.05, 0.5, 0.95, 1.0])


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    SHARES,
    SHARES | st.just(0.0),
    st.integers(0, 99),
    st.booleans(),
)
def test_advantages_of_tokens_are_the_double_sum(
    sizes: list[int], gamma: float, lam: float, seed: int, has_penalty: bool
) -> None:
    """Equation 16 as it is written: each token's advantage sums all later errors, of rewards less penalties."""
    draw = np.random.default_rng(seed)
    rows = [EncodedRow([1, 2, *range(size)], [False, False, *[True] * size]) for size in sizes]
    batch = packed_groups([Group([row], {ADVANTAGES: [draw.normal()]}) for row in rows], 16, 5)
    batch[VALUES] = draw.normal(size=batch["tokens"].shape).astype(np.float32)
    penalty = draw.normal(size=batch["tokens"].shape).astype(np.float32) if has_penalty else None
    found = with_returns(batch, ValueConfig(gamma=gamma, lam=lam), penalty)
    plain = np.zeros(batch["tokens"].shape)
    for row, where, reward in segments(batch):
        values = [*batch[VALUES][row, where].astype(np.float64), 0.0]
        rewards = np.zeros(len(where)) if penalty is None else -penalty[row, where].astype(np.float64)
        rewards[-1] += reward
        errors = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(len(where))]
        for t, place in enumerate(where):
            plain[row, place] = sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(where)))
        np.testing.assert_allclose(found[RETURNS][row, where], plain[row, where] + values[:-1], atol=1e-5)
    learned = batch["loss_mask"] > 0
    normal = (plain[learned] - plain[learned].mean()) / (plain[learned].std() + 1e-8)
    np.testing.assert_allclose(found[TOKEN_ADVANTAGES][learned], normal, atol=1e-3)
    assert not found[TOKEN_ADVANTAGES][~learned].any() and not found[RETURNS][~learned].any()


def scores_of(params: Any, batch: HostBatch) -> np.ndarray:
    hidden = forward(SCORED, params, *(jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids")))
    return np.asarray(hidden, np.float64) @ np.asarray(params[SCORE], np.float64)


@pytest.mark.slow
def test_values_of_a_batch_are_scores_of_the_weights_that_sampled_it(params: Any) -> None:
    made = batches_of(settings(PpoConfig, num_iterations=2), params, SCORED).of_step(0, params)
    assert made.scored is not None
    scores, learned = scores_of(params, made.batch), made.batch["loss_mask"] > 0
    np.testing.assert_allclose(made.batch[VALUES][learned], scores[learned], atol=1e-4)
    numbers = made.batch["group_ids"][made.batch["group_mask"] > 0]
    assert [value for _, _, value in segments(made.batch)] == pytest.approx(made.scored.rewards[numbers].tolist())


def test_a_values_loss_is_its_squared_error_or_that_of_the_clipped_value(params: Any) -> None:
    config = settings(PpoConfig, value={"clip": 0.2})
    batch = dict(batches_of(config, params, SCORED).batch(0, params))
    draw = np.random.default_rng(0)
    batch[VALUES] = batch[VALUES] + draw.normal(scale=0.5, size=batch[VALUES].shape).astype(np.float32)
    sums = jax.jit(build_objective(SCORED, config))(params, {name: jnp.asarray(own) for name, own in batch.items()})
    found, old, returns = scores_of(params, batch), batch[VALUES], batch[RETURNS]
    clipped = old + np.clip(found - old, -0.2, 0.2)
    losses = np.maximum((found - returns) ** 2, (clipped - returns) ** 2) / 2
    learned = batch["loss_mask"] > 0
    assert (losses > (found - returns) ** 2 / 2)[learned].any()
    assert float(sums.metrics["value_loss"] / sums.count) == pytest.approx(losses[learned].mean(), rel=1e-4)


@pytest.mark.long
def test_a_stage_with_a_value_function_goes_on_to_the_same_weights(params: Any, tmp_path: Path) -> None:
    config = settings(PpoConfig, num_iterations=2)

    def run(out: Path, progress: Silent) -> dict[str, Any]:
        batches = batches_of(config, params, SCORED)
        job = TrainJob(SCORED, config, one_device(), build_objective(SCORED, config), batches, params, out)
        return run_job(job, progress, [LogRollouts(batches, Samples(out, progress), progress)])

    whole = run(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", StopAt(3))
    assert run(tmp_path / "stopped", Silent())["params_hash"] == whole["params_hash"]
    assert '"value_loss"' in (tmp_path / "whole" / "metrics.jsonl").read_text()


ANSWERS = [([7, 8, 9][: 1 + i % 3], [20 + i] * (1 + 2 * i)) for i in range(6)]


@pytest.mark.slow
def test_a_reward_model_scores_an_answer_as_it_does_alone(params: Any) -> None:
    config = settings(prompts_per_step=1, group_size=2, global_batch_size=1)  # which has room for two
    found = model_reward(SCORED, params, config, one_device())(ANSWERS)
    for (prompt, completion), reward in zip(ANSWERS, found, strict=True):
        ids = [*prompt, *completion]
        alone = {name: np.zeros((1, 16), np.int32) for name in ("tokens", "positions", "segment_ids")}
        for name, column in (("tokens", ids), ("positions", range(len(ids))), ("segment_ids", [1] * len(ids))):
            alone[name][0, : len(ids)] = column
        assert reward == pytest.approx(scores_of(params, alone)[0, len(ids) - 1], abs=1e-4)
    assert len(set(np.round(found, 4))) == len(ANSWERS)


@pytest.mark.parametrize("rewards", [None, []], ids=["beside", "alone"])
def test_a_reward_models_score_is_added_with_its_weight(params: Any, rewards: list[Any] | None) -> None:
    """Also to a function that says nothing of some completions."""
    own: dict[str, Any] = {} if rewards is None else {"rewards": rewards}
    config = settings(reward="judge", reward_weight=0.5, **own)
    sampler = sampler_of(config, MODEL, lambda answers: [float(len(ids)) for _, ids in answers])
    scored = sampler.sample(0, {name: part for name, part in params.items() if name != SCORE}, prompts())
    others = scored.scores.values.get("letters", [0.0] * len(scored.rollouts))
    assert scored.scores.values[NAME] == [len(rollout.ids) for rollout in scored.rollouts]
    expected = [other + 0.5 * len(r.ids) for other, r in zip(others, scored.rollouts, strict=True)]
    assert scored.rewards.tolist() == pytest.approx(expected)
