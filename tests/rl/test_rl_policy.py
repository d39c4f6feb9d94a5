"""Rollouts become batches: advantages, places of log-probabilities, the same again after a restart, and a run."""

import errno
import io
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import read_log
from lifecycle.inference.generate import Generator
from lifecycle.model.params import with_fresh_adapter
from lifecycle.rl.advantages import ADVANTAGES, EPSILON, advantages
from lifecycle.rl.batch import Scores
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import RlooConfig
from lifecycle.rl.hook import AnswerHeldout, LogRollouts, answered_metrics
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.metrics import metrics_of
from lifecycle.rl.rollouts import Scored
from lifecycle.rl.samples import Samples, samples_of
from lifecycle.rl.sampling import Rollout
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt
from lifecycle.testing.notes import Notes
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.policy import KEPT, OLD, REFERENCE, SAMPLER
from tests.rl.toy_policy import MODEL, SEED, assert_same, batches_of, later, one_device, prompts, sampler_of, settings

PIECES = {"max_staleness": 1, "partial": {"prompts_in_flight": 5, "tokens": 2}}


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


def test_a_batch_has_what_was_sampled_at_its_places(params: Any) -> None:
    config = settings(num_iterations=2, beta=0.1)
    batches = batches_of(config, params)
    made = batches.of_step(0, params)
    scored, batch = made.scored, made.batch
    assert scored is not None and len(scored.rollouts) == 12 and batch["tokens"].shape == (8, 32)
    values = advantages("grpo", scored.rewards.reshape(3, 4)).reshape(-1)
    seen = set()
    for row, place in np.argwhere(batch["group_mask"] > 0):
        number = int(batch["group_ids"][row, place])
        rollout = scored.rollouts[number]
        where = batch["segment_ids"][row] == place + 1
        assert batch["tokens"][row, where].tolist() == [*rollout.prompt.ids, *rollout.ids]
        learned = where & (batch["loss_mask"][row] > 0)
        assert batch["targets"][row, learned].tolist() == list(rollout.ids)
        np.testing.assert_allclose(batch[SAMPLER][row, learned], rollout.logprobs)
        np.testing.assert_allclose(batch[OLD][row, learned], rollout.logprobs, atol=1e-3)
        np.testing.assert_allclose(batch[REFERENCE][row, learned], rollout.logprobs, atol=1e-3)
        assert batch["advantages"][row, place, 0] == pytest.approx(values[number], abs=1e-6)
        seen.add(number)
    assert len(seen) == 12
    assert_same(batches.batch(1, later(params, 9)), batch)  # the second step on the same completions


@pytest.mark.parametrize("own", [{}, PIECES], ids=["at once", "in pieces"])
def test_the_samplers_cache_is_gone_before_the_reward_model_comes(
    params: Any, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Generator]] = []

    class Watched(Generator):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    def judge(sound: Any) -> list[float]:
        assert made and all(one() is None for one in made)
        return [0.0] * len(sound)

    monkeypatch.setattr("lifecycle.rl.sampling.Generator", Watched)
    config = settings(reward="judge", **own)
    columns = measured_columns(MODEL, config, one_device(), params)
    batches = PolicyBatches(prompts(), config, sampler_of(config, MODEL, judge), SEED, columns)
    assert batches.of_step(0, params).scored is not None and len(made) == 1
    batches.close()


def test_the_divergence_in_rewards_is_that_from_the_initial_weights(params: Any) -> None:
    """Of the same completions as where it is in the loss, whose batch has the column for it."""
    of_rewards, of_loss = settings(RlooConfig, beta=0.1), settings(RlooConfig, beta=0.1, use_kl_in_reward=False)
    assert abs(batches_of(of_rewards, params).of_step(0, params).metrics["kl"]) < 1e-3  # of themselves
    made, other = (batches_of(config, params).of_step(1, later(params, 9)) for config in (of_rewards, of_loss))
    assert made.scored is not None and not {OLD, REFERENCE} & set(made.batch) and "kl" not in other.metrics
    gaps = (other.batch[SAMPLER] - other.batch[REFERENCE]) * other.batch["loss_mask"]
    assert made.metrics["kl"] == pytest.approx(gaps.sum() / made.batch["loss_mask"].sum()) and made.metrics["kl"] > 0.01
    lowered = np.zeros(12)
    for row, place in np.argwhere(made.batch["group_mask"] > 0):
        lowered[made.batch["group_ids"][row, place]] = gaps[row, made.batch["segment_ids"][row] == place + 1].sum()
    values = advantages("rloo", (made.scored.rewards - 0.1 * lowered).reshape(3, 4)).reshape(-1)
    for row, place in np.argwhere(made.batch["group_mask"] > 0):
        number = made.batch["group_ids"][row, place]
        assert made.batch["advantages"][row, place, 0] == pytest.approx(values[number], abs=1e-5)
    batch = {name: jnp.asarray(column) for name, column in made.batch.items()}
    assert "kl" not in jax.jit(build_objective(MODEL, of_rewards))(params, batch).metrics


@pytest.mark.parametrize("own", [{"adapter": {"rank": 2}}, {"weights": "int4"}], ids=str)
def test_completions_are_sampled_from_the_weights_that_steps_see(params: Any, own: dict[str, Any]) -> None:
    """They were those of the base without the adapter, and of the plain weights."""
    config = settings(num_iterations=2, **own)
    model = config.trained(MODEL)
    if model.adapter is not None:
        params = with_fresh_adapter(model, params, jax.random.key(0))
        learned = jax.tree.map(lambda array: array + 0.1, params["adapter"])
        params = params | {"adapter": learned}
    batch = batches_of(config, None, model).batch(0, params)
    assert batch["loss_mask"].sum() > 10
    np.testing.assert_allclose(batch[SAMPLER], batch[OLD], atol=1e-5)


def test_a_batch_depends_on_step_and_weights_only(params: Any) -> None:
    config = settings(num_iterations=2, beta=0.1)
    batches = batches_of(config, params)
    first = [batches.batch(step, params) for step in range(4)]
    again = batches_of(config, params)
    assert_same(again.batch(2, params), first[2])
    assert not np.array_equal(first[0]["tokens"], first[2]["tokens"])
    resumed = batches_of(config, params)
    assert resumed.restore(batches.state(3)) == 3
    other = jax.tree.map(lambda x: 2 * x, params)  # the weights have gone on
    assert_same(resumed.batch(3, other), first[3])


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(params: Any, tmp_path: Path) -> None:
    def run(out: Path, progress: Silent) -> dict[str, Any]:
        config = settings(num_iterations=2, beta=0.1)
        batches = batches_of(config, params)
        job = TrainJob(MODEL, config, one_device(), build_objective(MODEL, config), batches, params, out)
        samples = Samples(out, progress)
        answers = AnswerHeldout(2, sampler_of(config, MODEL), prompts()[:2], samples)
        return run_job(job, progress, [LogRollouts(batches, samples, progress), answers])

    whole = run(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", StopAt(3))
    assert run(tmp_path / "stopped", Silent())["params_hash"] == whole["params_hash"]
    log = (tmp_path / "whole" / "metrics.jsonl").read_text()
    for metric in ("reward", "frac_reward_zero_std", "completions/clipped_ratio", "kl", "clip_ratio/region_mean"):
        assert f'"{metric}"' in log, metric
    counts = [record["num_tokens"] for record in read_log(tmp_path / "whole" / "metrics.jsonl") if "loss" in record]
    assert 0 < counts[0] == counts[1] < counts[2] == counts[3]  # completions count once
    samples = list(read_log(tmp_path / "whole" / "rollouts.jsonl"))
    assert list(read_log(tmp_path / "stopped" / "rollouts.jsonl")) == samples  # each once
    counts = Counter((sample["step"], sample["split"]) for sample in samples)
    assert counts == {(0, "heldout"): 2, (2, "heldout"): 2, (4, "heldout"): 2, (2, "train"): 3, (4, "train"): 3}
    assert all(sample["reward"] == sample["rewards"]["letters"] for sample in samples)
    heldout = [record for record in read_log(tmp_path / "whole" / "metrics.jsonl") if "heldout_reward" in record]
    own = [sample["reward"] for sample in samples if (sample["step"], sample["split"]) == (4, "heldout")]
    assert heldout[-1]["heldout_reward"] == pytest.approx(np.mean(own))


GROUPS = arrays(np.float64, (4, 5), elements=st.floats(-8, 8).map(lambda x: round(x, 3)))


@given(GROUPS)
def test_advantages(rewards: np.ndarray) -> None:
    mean, deviation = rewards.mean(1, keepdims=True), rewards.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(advantages("grpo", rewards), (rewards - mean) / (deviation + EPSILON), atol=1e-9)
    np.testing.assert_allclose(advantages("dr_grpo", rewards), rewards - mean, atol=1e-9)
    others = (rewards.sum(1, keepdims=True) - rewards) / 4
    np.testing.assert_allclose(advantages("rloo", rewards), rewards - others, atol=1e-9)
    whole = (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)
    np.testing.assert_allclose(advantages("reinforce_plus_plus", rewards), whole, atol=1e-9)


@given(GROUPS, st.sampled_from(sorted(ADVANTAGES)))
def test_a_completion_without_a_reward_teaches_nothing(rewards: np.ndarray, name: str) -> None:
    rewards[0, 0] = rewards[2] = np.nan
    found = advantages(name, rewards)
    assert np.isfinite(found).all() and found[0, 0] == 0 and not found[2].any()
    there = rewards[[0, 1, 3]][:, 1:]
    assert np.isfinite(advantages(name, there)).all()


def test_what_rewards_do_not_say_is_told() -> None:
    """A run that no reward spoke of logged NaN, and no remark."""
    nan, said = float("nan"), [Rollout(prompt, [5], [-1.0], "a", False) for prompt in prompts()[:4]]

    def metrics(totals: list[float]) -> dict[str, float]:
        scores = Scores({"r": totals}, totals, {"r": Counter({"too slow": 2})}, metrics={"length": 3})
        return metrics_of(Scored(said, scores, 0, 0), group_size=2)

    half = metrics([nan, 1, 1, 2])
    assert (half["reward"], half["rewards/r/mean"]) == pytest.approx((4 / 3, 4 / 3))
    assert (half["reward_std"], half["rewards/r/std"]) == pytest.approx((3**-0.5, 3**-0.5))  # of all: TRL's
    assert half["reward_std_in_groups"] == pytest.approx(0.5**0.5)  # of those with two rewards
    assert (half["frac_reward_zero_std"], half["frac_unscored"]) == (0.5, 0.25)
    assert (half["rewards/r/faults"], half["logged/length"]) == (2, 3)
    nothing = metrics([nan] * 4)
    assert "reward" not in nothing and "rewards/r/mean" not in nothing and np.isfinite(list(nothing.values())).all()
    assert nothing["frac_reward_zero_std"] == nothing["frac_unscored"] == 1


def test_lengths_are_told_as_trl_tells_them() -> None:
    """Those of completions that ended by themselves apart; 0 where none did."""
    own = zip(prompts(), (3, 6, 6, 2), (False, True, True, False), strict=False)
    said = [Rollout(prompt, [5] * size, [-1.0] * size, "a", is_cut) for prompt, size, is_cut in own]

    def lengths(rollouts: list[Rollout]) -> dict[str, float]:
        found = metrics_of(Scored(rollouts, Scores({}, [0.0] * len(rollouts), {}), 0, 0), group_size=2)
        return {name.removeprefix("completions/"): value for name, value in found.items() if "completions/" in name}

    assert lengths(said) == {
        "clipped_ratio": 0.5, "mean_length": 4.25, "min_length": 2, "max_length": 6,
        "mean_terminated_length": 2.5, "min_terminated_length": 2, "max_terminated_length": 3,
    }  # fmt: skip
    assert {lengths(said[1:3])[f"{name}_terminated_length"] for name in ("mean", "min", "max")} == {0}


def test_each_of_several_rewards_is_measured_on_held_out_prompts() -> None:
    said = [Rollout(prompt, [5] * (1 + n), [-1.0], "a", False) for n, prompt in enumerate(prompts()[:2])]
    scores = Scores({"a": [1, 0], "reward_model": [2.5, float("nan")]}, [3.5, 0], {})
    assert answered_metrics(Scored(said, scores, 0, 0)) == {
        "heldout_reward": 1.75, "heldout_rewards/a/mean": 0.5, "heldout_rewards/reward_model/mean": 2.5,
        "heldout_completions/mean_length": 1.5,
    }  # fmt: skip


def test_samples_that_a_full_disk_does_not_take_are_left_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, scored = Notes(), Scored([Rollout(prompts()[0], [5], [-1.0], "a", False)], Scores({}, [1], {}), 0, 0)
    samples = Samples(tmp_path, notes)
    samples.write(1, "train", samples_of(scored, 1))
    before = (tmp_path / "rollouts.jsonl").read_bytes()

    def write_half(file: Any, lines: Any) -> None:
        file.write(next(iter(lines))[:9])
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.TextIOWrapper):
        writelines = write_half

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Full(io.FileIO(path, "ab"), encoding="utf-8"))
    samples.write(2, "train", samples_of(scored, 1))
    monkeypatch.undo()
    assert (tmp_path / "rollouts.jsonl").read_bytes() == before
    assert notes.notes == [f"step 2: No space left on device, so its samples are not in {tmp_path / 'rollouts.jsonl'}"]
    samples.rewind(0)
    assert (tmp_path / "rollouts.jsonl").read_bytes() == b""


@pytest.mark.parametrize(("totals", "flat", "spread"), [([0, 1, 0, 1], 0, 12**-0.5 * 2), ([1, 1, 1, 1], 1, 0)])
def test_single_samples_are_compared_with_each_other(totals: list[float], flat: float, spread: float) -> None:
    """Of PPO every group was flat, and the run was told so."""
    said = [Rollout(prompt, [5], [-1.0], "a", False) for prompt in prompts()[:4]]
    found = metrics_of(Scored(said, Scores({}, totals, {}), 0, 0), group_size=1)
    assert (found["frac_reward_zero_std"], found["reward_std"]) == pytest.approx((flat, spread))


FILTERS = [{}, {"temperature": 0.7}]
SLOW_FILTERS = [{"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.05}]


@pytest.mark.parametrize(
    "own", [*FILTERS, *(pytest.param(own, marks=pytest.mark.slow) for own in SLOW_FILTERS)], ids=str
)
def test_trainer_and_sampler_have_one_distribution(params: Any, own: dict[str, Any]) -> None:
    """With a temperature, and with filters that leave out most ids; also as the older policy of several steps."""
    config = settings(num_iterations=2, **own)
    host = batches_of(config, params).batch(0, params)
    learned = host["loss_mask"] > 0
    np.testing.assert_allclose(host[OLD][learned], host[SAMPLER][learned], atol=2e-5)
    sums = jax.jit(build_objective(MODEL, config))(params, {name: jnp.asarray(own) for name, own in host.items()})
    gap = "sampling/sampling_logp_difference"
    assert 0 <= sums.metrics[f"{gap}/mean"] / sums.counts[f"{gap}/mean"] <= sums.largest[f"{gap}/max"] < 1e-4
    assert (KEPT in host) == ("top_k" in own)
    if KEPT in host:
        num = (host[KEPT][learned] >= 0).sum(-1)
        assert (host[KEPT][learned] == host["targets"][learned][:, None]).any(-1).all()
        assert num.min() < num.max() <= own["top_k"] and (host[KEPT][~learned] == -1).all()


def test_a_step_without_a_spread_has_no_gradient(params: Any) -> None:
    config = settings()
    host = batches_of(config, params).batch(0, params)
    batch = {name: jnp.asarray(column) for name, column in host.items()} | {"advantages": jnp.zeros((8, 12, 1))}
    objective = build_objective(MODEL, config)
    grads = jax.jit(jax.grad(lambda params: objective(params, batch).loss))(params)
    assert not any(np.asarray(grad).any() for grad in jax.tree.leaves(grads))


def test_what_is_sampled_from_fewer_ids_needs_a_bound() -> None:
    with pytest.raises(ConfigError, match="top_p and min_p need top_k"):
        settings(top_p=0.9)


def test_rollouts_that_cannot_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"12 completions of up to 14 tokens .* do not fit global_batch_size=4 rows"):
        settings(global_batch_size=4)
    with pytest.raises(ConfigError, match="compares samples of a prompt"):
        settings(group_size=1)
