"""Which prompts a step samples and when: rounds until groups differ, and steps ahead of their updates."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import read_log
from lifecycle.core.timesheet import account, read_sessions
from lifecycle.rl.batch import RewardError
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import GrpoConfig, PpoConfig, ReinforceConfig, RolloutConfig
from lifecycle.rl.hook import LogRollouts
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.rollouts import Found, Sampler, Unscored
from lifecycle.rl.samples import Samples
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt
from lifecycle.training.batches import HostBatch
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.policy import OLD, SAMPLER
from lifecycle.training.passing import PassingBatches
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState
from tests.rl.toy_policy import (
    MODEL,
    SEED,
    assert_same,
    batches_of,
    later,
    one_device,
    order,
    prompts,
    sampler_of,
    settings,
)

ROUNDS: dict[str, Any] = {
    "rewards": [{"function": f"{__file__}:two_letters"}],
    "prompts_per_step": 2,
    "max_num_gen_batches": 4,
}
AHEAD: dict[str, Any] = {"max_staleness": 1}
PIECES: dict[str, Any] = AHEAD | {"partial": {"prompts_in_flight": 5, "tokens": 2}}


def two_letters(prompts: Any, completions: list[str], letter: list[str], **_: Any) -> list[float]:
    """Equal for the prompts of three letters, never for the other two."""
    return [float(place % 2 and one in "de") for place, one in enumerate(letter)]


def nothing(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """Equal for all."""
    return [0.5] * len(completions)


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


def test_groups_without_a_spread_are_replaced_by_further_prompts(params: Any) -> None:
    batches = batches_of(settings(**ROUNDS), params)
    letters = order(20)
    informative = [place for place, letter in enumerate(letters) if letter in "de"]
    seeds: set[tuple[int, ...]] = set()
    for step in range(2):
        made = batches.of_step(step, params)
        assert made.scored is not None and made.batch["tokens"].shape == (8, 32)
        chosen = informative[2 * step : 2 * step + 2]
        assert ["abcde"[number] for number in made.prompts] == [letters[place] for place in chosen]
        begin = 0 if step == 0 else informative[1] + 1
        assert made.metrics["dynamic_sampling/groups_dropped"] == chosen[1] + 1 - begin - 2
        assert made.metrics["frac_reward_zero_std"] == 0 and made.metrics["reward"] == 0.5
        assert made.metrics["dynamic_sampling/reward"] == pytest.approx(1 / (chosen[1] + 1 - begin))
        seeds |= {tuple(rollout.ids) for rollout in made.scored.rollouts}
    assert len(seeds) == 16  # no two samples are alike: rounds have numbers of their own


def test_a_step_that_finds_too_few_groups_is_filled(params: Any) -> None:
    own = ROUNDS | {"rewards": [{"function": f"{__file__}:nothing"}], "max_num_gen_batches": 3}
    batches = batches_of(settings(**own), params)
    made = batches.of_step(0, params)
    assert made.metrics["dynamic_sampling/num_gen_batches"] == 3 and made.metrics["frac_reward_zero_std"] == 1
    assert made.metrics["dynamic_sampling/groups_dropped"] == 4 and not made.batch["advantages"].any()
    assert ["abcde"[number] for number in made.prompts] == order(6)[4:]
    assert batches.state(1)["place"] == 6


def test_the_state_has_the_place_in_the_order_of_prompts(params: Any) -> None:
    batches = batches_of(settings(**ROUNDS), params)
    first = [batches.batch(step, later(params, step)) for step in range(3)]
    again = batches_of(settings(**ROUNDS), params)
    assert again.restore(batches.state(2)) == 2
    assert_same(again.batch(2, later(params, 2)), first[2])


def test_completions_are_of_the_weights_of_a_step_before(params: Any) -> None:
    """Version by version what a sampler of those weights samples; its log-probabilities are the older policy's."""
    config = settings(**AHEAD)
    batches, alone = batches_of(config, params), batches_of(settings(), params)
    for step, version in ((0, 0), (1, 0), (2, 1), (3, 2)):
        made = batches.of_step(step, later(params, step))
        expected = alone.of_step(step, later(params, version))
        assert made.version == version and made.metrics["sampling/staleness"] == step - version <= 1
        assert_same({name: column for name, column in made.batch.items() if name != OLD}, expected.batch)
        np.testing.assert_array_equal(made.batch[OLD], made.batch[SAMPLER])
    batches.close()


def test_the_cap_weighs_by_the_policy_as_it_is(params: Any) -> None:
    """Truncated importance sampling corrects the whole gap of policy and sampler, so there is no older policy."""
    batches = batches_of(settings(**AHEAD, sampler_cap=2.0), params)
    assert OLD not in batches.batch(0, params)
    batches.close()


@pytest.mark.parametrize("staleness", [1, 3])
def test_what_was_sampled_from_earlier_weights_is_in_the_state(params: Any, staleness: int) -> None:
    config = settings(steps=8, max_staleness=staleness)
    batches = batches_of(config, params)
    first = {step: batches.batch(step, later(params, step)) for step in range(3)}
    state = batches.state(2)
    assert [plain["first"] for plain in state["rollouts"]] == list(range(2, 2 + staleness))
    again = batches_of(config, params)
    assert again.restore(state) == 2
    for step in range(2, 7):
        one, other = (source.of_step(step, later(params, step)) for source in (batches, again))
        assert_same(one.batch, other.batch)
        timed = ("generation_s", "reward_s")
        assert [value for name, value in one.metrics.items() if name not in timed] == [
            value for name, value in other.metrics.items() if name not in timed
        ]
    assert_same(first[2], batches_and(again, state, later(params, 2)))
    batches.close()
    again.close()


def batches_and(batches: PolicyBatches, state: dict[str, Any], params: Any) -> HostBatch:
    """The batch of a state's step."""
    return batches.batch(batches.restore(state), params)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(AHEAD, marks=pytest.mark.slow),
        pytest.param(ROUNDS, marks=pytest.mark.long),
        pytest.param(PIECES, marks=pytest.mark.long),
    ],
    ids=["ahead", "rounds", "pieces"],
)
def test_a_run_that_is_killed_goes_on_to_the_same_weights_and_log(
    own: dict[str, Any], params: Any, tmp_path: Path
) -> None:
    def run(out: Path, progress: Silent) -> dict[str, Any]:
        config = settings(**own)
        batches = batches_of(config, params)
        job = TrainJob(MODEL, config, one_device(), build_objective(MODEL, config), batches, params, out)
        return run_job(job, progress, [LogRollouts(batches, Samples(out, progress), progress)])

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole, Silent())["params_hash"]
    for step in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(stopped, StopAt(step))
    assert run(stopped, Silent())["params_hash"] == expected
    logged = [[(r["step"], r["reward"], r["loss"]) for r in merged(out)] for out in (whole, stopped)]
    assert logged[0] == logged[1] and len(logged[0]) == 4
    sheet = account(read_sessions(whole / "times.jsonl"))
    assert sheet.seconds["generation"] > 0
    assert ("waiting" in sheet.seconds) == ("max_staleness" in own)


def merged(out: Path) -> Iterator[dict[str, Any]]:
    """A run log's records by step."""
    steps: dict[int, dict[str, Any]] = {}
    for record in read_log(out / "metrics.jsonl"):
        steps.setdefault(record["step"], {}).update(record)
    return (record for _, record in sorted(steps.items()) if "loss" in record)


class Meeting(Sampler):
    """Finds the rewards of a step once the next step's completions are being sampled."""

    last = 3

    def __init__(self, config: RolloutConfig) -> None:
        plain = sampler_of(config, MODEL)
        self.__dict__.update(plain.__dict__)
        self.begun = [threading.Event() for _ in range(self.last + 1)]
        self.beside: list[int] = []

    def drawn(self, step: int, *given: Any, **others: Any) -> Unscored:
        self.begun[step].set()
        return super().drawn(step, *given, **others)

    def found(self, drawn: Unscored) -> Found:
        if drawn.step < self.last:
            assert self.begun[drawn.step + 1].wait(60), "nothing is sampled while rewards are found"
            self.beside.append(drawn.step)
        return super().found(drawn)


def test_rewards_are_found_while_the_next_step_is_sampled(params: Any) -> None:
    config = settings(**AHEAD)
    sampler = Meeting(config)
    batches = PolicyBatches(prompts(), config, sampler, SEED, lambda params, batch: {})
    for step in range(4):
        batches.batch(step, params)
    batches.close()
    assert sampler.beside == [0, 1, 2]


def failing(prompts: Any, completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
    """Fails in its second step."""
    if trainer_state.global_step == 1:
        raise KeyError("lost")
    return [0.0] * len(completions)


def test_a_reward_that_fails_ahead_ends_the_step_that_needs_it(params: Any) -> None:
    batches = batches_of(settings(**AHEAD, rewards=[{"function": f"{__file__}:failing"}]), params)
    batches.batch(0, params)
    with pytest.raises(RewardError, match="lost"):
        batches.batch(1, params)
    batches.close()


def test_a_branch_with_other_rows_samples_again_what_does_not_fit(params: Any) -> None:
    batches = batches_of(settings(**AHEAD), params)
    for step in range(2):
        batches.batch(step, params)
    longer = batches_of(settings(**AHEAD, global_batch_size=6), params)
    assert longer.continue_from(batches.state(1)) == 1
    made = longer.of_step(1, params)
    assert made.batch["tokens"].shape == (6, 32) and made.version == 1
    assert made.prompts == batches.of_step(1, params).prompts
    same = batches_of(settings(**AHEAD), params)
    same.continue_from(batches.state(1))
    assert_same(same.batch(1, params), batches.batch(1, params))
    for each in (batches, longer, same):
        each.close()


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        (PpoConfig, {"max_staleness": 1}, "one step on each completion"),
        (GrpoConfig, {"max_staleness": 1, "episodes": {"tools": ["python"]}}, "in the same environments"),
        (ReinforceConfig, {"max_num_gen_batches": 2}, "reinforce_plus_plus knows none"),
        (RolloutConfig, {"max_staleness": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_what_cannot_go_together_is_refused(kind: Any, own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(kind, **own)


def test_rounds_and_steps_ahead_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="nothing would overlap"):
        settings(max_num_gen_batches=2, **AHEAD)


def test_behind_batches_that_were_passed_over_the_log_has_those_that_were_learned(params: Any, tmp_path: Path) -> None:
    config = settings()
    source = batches_of(config, params)
    passing = PassingBatches(source)
    passing.pass_over(0, 1)
    job = TrainJob(MODEL, config, one_device(), build_objective(MODEL, config), passing, params, tmp_path)
    state = TrainState(params, {}, (), jnp.ones((), jnp.int32))
    run = TrainingRun(job, Silent(), None, state, step=1)
    for step in (0, 1):  # the next step's batch is there before the hooks of a step
        passing.batch(step, params)
    LogRollouts(source, Samples(tmp_path, Silent()), Silent()).after_step(run)
    learned = source.at_hand(2)
    assert learned is not None and run.logged == {"step": 1, **learned.metrics} and "reward" in run.logged


class Recorded(PolicyBatches):
    """Keeps what the newest batch of each number was made from; those of `faulty` have a loss that is not finite."""

    faulty: tuple[int, ...] = ()

    def batch(self, step: int, params: Any) -> HostBatch:
        made = self.of_step(step, params)
        self.rewards = {**getattr(self, "rewards", {}), step: made.metrics["reward"]}
        return made.batch | ({"advantages": made.batch["advantages"] * np.nan} if step in self.faulty else {})


@pytest.mark.parametrize(
    ("own", "every", "passed"),
    [
        pytest.param({}, 1, {1: 1}, id="to a checkpoint", marks=pytest.mark.long),
        pytest.param({}, 100, {0: 2}, id="to the start", marks=pytest.mark.long),
        pytest.param(AHEAD, 1, {1: 1}, id="ahead", marks=pytest.mark.long),
        pytest.param(ROUNDS, 100, {0: 2}, id="rounds", marks=pytest.mark.long),
    ],
)
def test_a_run_that_goes_back_learns_and_logs_as_one_without_those_batches(
    params: Any, own: dict[str, Any], every: int, passed: dict[int, int], tmp_path: Path
) -> None:
    """What was sampled before it went back is not used again: it was from other weights."""
    config = settings(**own, faults={"policy": "rollback"}, checkpoint={"every": every})
    columns = measured_columns(MODEL, config, one_device(), params)
    numbers = [step + sum(num for before, num in passed.items() if before <= step) for step in range(config.steps)]

    def run(out: Path, faulty: tuple[int, ...], passed: dict[int, int]) -> tuple[str, list[float]]:
        source = Recorded(prompts(), config, sampler_of(config, MODEL), SEED, columns)
        source.faulty, passing = faulty, PassingBatches(source)
        passing.passed = passed
        job = TrainJob(MODEL, config, one_device(), build_objective(MODEL, config), passing, params, out)
        stats = run_job(job, Silent(), [LogRollouts(source, Samples(out, Silent()), Silent())])
        assert [fault["action"] for fault in stats["faults"]] == ["went back"] * len(faulty)
        return stats["params_hash"], [source.rewards[number] for number in numbers]

    found, rewards = run(tmp_path / "back", (1,), {})
    assert run(tmp_path / "without", (), passed) == (found, rewards)
    assert [record["reward"] for record in merged(tmp_path / "back")] == rewards
    counts = [[record["num_tokens"] for record in merged(tmp_path / name)] for name in ("back", "without")]
    assert counts[0] == counts[1] == sorted(counts[0])
