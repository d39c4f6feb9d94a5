"""Remarks on a stage's metrics: each is made where it should be and nowhere else, once, whatever is logged."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.notes import Notes
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.loop import run_job
from lifecycle.training.remarks import METRICS as LOOKED_AT
from lifecycle.training.remarks import RULES, Remark, RemarkedStage, Remarks
from lifecycle.training.run import TrainingRun

CHOSEN, MARGINS = "logps/chosen", "rewards/margins"


def remarks(
    records: Iterable[Mapping[str, Any]], objective: str = "dpo", steps: int = 1000, **own: Any
) -> list[Remark]:
    seen = Remarks(RemarkedStage(objective, steps, own.pop("dtype", "float32"), own))
    return [remark for record in records for remark in seen.see(record)]


def logged(metric: str, values: Iterable[float], every: int = 10, **others: float) -> list[dict[str, float]]:
    return [{"step": every * number, metric: value, **others} for number, value in enumerate(values, 1)]


def kinds(found: list[Remark]) -> list[str]:
    return [remark.kind for remark in found]


@pytest.mark.parametrize("metric", ["frac_reward_zero_std", "completions/clipped_ratio"])
def test_shares_are_remarked_upon_where_they_stay_high(metric: str) -> None:
    (found,) = remarks(logged(metric, [1.0] * 40))
    assert found.step == 50 and "100%" in found.text
    assert remarks(logged(metric, [0.8] * 40)) == []
    assert remarks(logged(metric, [1.0, 0.5, 1.0, 0.5] * 10)) == []
    assert remarks(logged(metric, [1.0] * 4)) == []
    assert [remark.step for remark in remarks(logged(metric, [1.0] * 4), steps=40)] == [40]  # nothing else will come
    assert [remark.step for remark in remarks(logged(metric, [0.9]), steps=10)] == [10]


def held_out_pairs(chosen: Iterable[float], margins: Iterable[float]) -> list[dict[str, float]]:
    both = zip(chosen, margins, strict=True)
    return [{"step": 10 * n, f"heldout_{CHOSEN}": c, f"heldout_{MARGINS}": m} for n, (c, m) in enumerate(both)]


def test_chosen_answers_that_become_less_likely_while_margins_rise() -> None:
    (found,) = remarks(held_out_pairs([-100, -105, -109, -111, -140], [0, 1, 2, 3, 4]))
    assert found.step == 30 and "-100 to -111" in found.text
    assert remarks(held_out_pairs([-100, -105, -109.9, -90], [0, 1, 2, 3])) == []
    assert remarks(held_out_pairs([-100, -150, -200, -300], [0, 0, -1, -1])) == []  # learns nothing; another trouble
    assert remarks(held_out_pairs([-100], [0])) == []
    # of log-probabilities per token, as of ORPO and SimPO
    assert kinds(remarks(held_out_pairs([-1.5, -1.7], [0, 1]), "orpo")) == ["chosen log-probabilities"]


def batches_of_pairs(noise: float, fall: float, seed: int) -> list[dict[str, float]]:
    draw, count = np.random.default_rng(seed), 100
    chosen = -100 + noise * draw.standard_normal(count) - fall * np.arange(count) / count
    return [{"step": 10 * n, CHOSEN: float(c), MARGINS: n / 100} for n, c in enumerate(chosen, 1)]


def test_batches_of_other_pairs_are_no_trend() -> None:
    """Means over a batch vary with the lengths of its answers: of SmolLM2's first DPO, -29, -12 and -17."""
    alarms = [bool(remarks(batches_of_pairs(noise, 0, seed))) for noise in (5, 30, 60) for seed in range(60)]
    assert np.mean(alarms) < 0.02
    assert all(remarks(batches_of_pairs(5, 60, seed)) for seed in range(20))
    assert remarks(batches_of_pairs(0, 60, 0))  # a log without any noise


def test_a_divergence_is_judged_by_the_settings_and_of_policies_only() -> None:
    assert kinds(remarks(logged("kl", [2.0] * 9), "grpo", max_kl=1.0)) == ["divergence"]
    assert remarks(logged("kl", [0.9, 0.9, 40.0, 0.9, 0.9, 0.9]), "grpo", max_kl=1.0) == []
    assert remarks(logged("kl", [40.0] * 9), "kto") == []  # nats per answer
    assert kinds(remarks(logged("kl", [-0.2] * 9), "grpo", max_kl=1.0)) == ["divergence"]
    assert remarks(logged("kl", [-0.05] * 9), "grpo", max_kl=1.0) == []


def test_a_sampler_gap_is_judged_by_the_dtype() -> None:
    gap = "sampling/sampling_logp_difference/mean"
    assert kinds(remarks(logged(gap, [0, 0, 0.002]), "grpo")) == ["sampler gap"]
    assert remarks(logged(gap, [0.0009] * 9), "grpo") == []
    assert remarks(logged(gap, [0.05] * 9), "grpo", dtype="bfloat16") == []
    assert kinds(remarks(logged(gap, [0.2]), "grpo", dtype="bfloat16")) == ["sampler gap"]
    assert remarks(logged(gap, [0.3]), "grpo", precision="int8") == []
    assert kinds(remarks(logged(gap, [0.7]), "grpo", precision="int8")) == ["sampler gap"]


def measured(accuracy: float, pairs: int, step: int) -> list[dict[str, float]]:
    return [{"step": 0, "heldout_accuracy": 0.5, "heldout_count": pairs},
            {"step": step, "heldout_accuracy": accuracy, "heldout_count": pairs}]  # fmt: skip


def test_a_reward_model_at_chance_is_told_once_it_could_have_learned() -> None:
    (found,) = remarks(measured(0.5, 113, 1000), "reward_model")
    assert "50% of 113 held-out pairs" in found.text
    assert remarks(measured(0.5, 113, 400), "reward_model") == []  # half of its steps are to come
    assert remarks(measured(0.5, 20, 1000), "reward_model") == []  # could be 70 %
    assert remarks(measured(0.62, 1000, 1000), "reward_model") == []
    assert remarks(measured(0.5, 113, 1000), "other") == []


def test_what_is_not_finite_or_missing_says_nothing() -> None:
    nothing = dict.fromkeys(LOOKED_AT, math.nan)
    for stage in ("dpo", "grpo", "reward_model"):
        assert remarks([{"step": step, **nothing} for step in range(20)], stage, steps=19, max_kl=1.0) == []
        assert remarks([{"step": step} for step in range(20)], stage, steps=19) == []
    infinite = dict.fromkeys(LOOKED_AT, math.inf)
    assert remarks([{"step": step, **infinite} for step in range(20)], "grpo", steps=19, max_kl=1.0) == []
    mixed = logged("frac_reward_zero_std", [1.0, math.nan] * 9)
    assert [remark.step for remark in remarks(mixed)] == [90]  # the fifth value


def everything(step: int) -> dict[str, float]:
    values = {rule.metric: 1.0 for rule in RULES}
    fallen = {f"{side}{CHOSEN}": -100.0 - 50 * step for side in ("", "heldout_")}
    return values | fallen | {f"{side}{MARGINS}": float(step) for side in ("", "heldout_")} | {"step": step}


def test_each_kind_is_told_once() -> None:
    found = kinds(remarks(map(everything, range(50)), "grpo", max_kl=0.5))
    assert len(found) == len(set(found)) == len({rule.kind for rule in RULES}) - 1  # no reward model


class Logs(Hook):
    """Logs what a run of rollouts would."""

    def after_step(self, run: TrainingRun) -> None:
        run.write(**{"completions/clipped_ratio": 1.0 if run.step > 2 else 0.0})


class StopsAt(Notes):
    """Stops as Ctrl-C does, when a step is reported; the steps before it are saved."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__()
        self._step = step

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        if done == self._step:
            raise KeyboardInterrupt


def told(out: Path, steps: int, stop_at: int | None = None) -> list[str]:
    notes = StopsAt(stop_at)
    job = tiny_job(out, TinyRun(steps=steps, checkpoint_every=1))
    with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
        run_job(job, notes, [Logs()])
    return [text for text in notes.notes if "max_completion_tokens" in text]


@pytest.mark.long
def test_a_run_tells_it_after_the_step_and_no_more_when_it_goes_on(tmp_path: Path) -> None:
    assert told(tmp_path / "short", 4) == []  # half of the records
    (text,) = told(tmp_path / "whole", 9)
    assert text.startswith("step 7: 100% of the completions")  # the two before are forgotten
    assert told(tmp_path / "stopped", 9, stop_at=6) == []
    assert told(tmp_path / "stopped", 9, stop_at=9) == [text]  # with what was logged before it was stopped
    assert told(tmp_path / "stopped", 9) == []
