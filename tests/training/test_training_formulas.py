"""Formulas by themselves, on numbers: no model, no mesh. And one that another package adds."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import MODEL, TinyRun, objective_of, rows_of, tiny_job
from lifecycle.training.batches import one_epoch
from lifecycle.training.config import DpoConfig, OrpoConfig
from lifecycle.training.heldout import heldout_means
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.dpo import dpo
from lifecycle.training.objectives.likelihoods import PairLikelihoods
from lifecycle.training.objectives.orpo import orpo
from lifecycle.training.objectives.sums import Sums, sums_over
from tests.training.simpo import SimpoConfig, simpo

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

SIZES: dict[str, Any] = {"steps": 1, "seq_len": 8, "global_batch_size": 1}


def pairs_of(logprobs: Any, lengths: Any, mask: Any, reference: Any) -> PairLikelihoods:
    """Pairs of one row, as a formula sees them."""
    batch = {"pair_mask": jnp.asarray([mask], jnp.float32), "ref_logprobs": jnp.asarray([reference], jnp.float32)}
    return PairLikelihoods(batch, jnp.asarray([logprobs], jnp.float32), jnp.asarray([lengths], jnp.float32))


LOGPROBS, LENGTHS = [[-4.0, -6.0], [-3.0, -1.0], [-9.0, -9.0]], [[4, 2], [3, 1], [1, 1]]
PAIRS = pairs_of(LOGPROBS, LENGTHS, [1, 1, 0], [[-5, -5], [-2, -2], [0, 0]])


def log_sigmoid(x: float) -> float:
    return -float(np.log1p(np.exp(-x)))


def test_dpo_by_hand() -> None:
    sums = dpo(DpoConfig(**SIZES, beta=0.5, sft_weight=2.0), PAIRS)
    assert sums.count == 2
    assert sums.loss == pytest.approx(-log_sigmoid(1.0) - log_sigmoid(-1.0) + 2 * (1 + 1), rel=1e-6)
    assert sums.metrics["margins"] == pytest.approx(0) and sums.metrics["rewards_chosen"] == pytest.approx(0)
    assert sums.metrics["accuracy"] == 1 and sums.metrics["likelihood_accuracy"] == 1.5  # a tie counts half


def test_orpo_by_hand() -> None:
    sums = orpo(OrpoConfig(**SIZES, beta=0.5), PAIRS)

    def log_odds(logprob: float) -> float:
        return logprob - float(np.log1p(-np.exp(logprob)))

    ratios = [log_sigmoid(log_odds(chosen) - log_odds(rejected)) for chosen, rejected in ((-1, -3), (-1, -1))]
    assert sums.loss == pytest.approx(1 + 1 - 0.5 * sum(ratios), rel=1e-6) and sums.count == 2
    assert sums.metrics["accuracy"] == 1.5  # a tie counts half


def test_a_metric_may_count_something_else() -> None:
    sums = simpo(SimpoConfig(**SIZES), PAIRS)
    assert (sums.metrics["chosen_nll"], sums.counts["chosen_nll"], sums.count) == (7, 7, 2)
    assert sums.metric_means(sums.count)["chosen_nll"] == 1  # over tokens
    nothing = sums_over(jnp.zeros(3), jnp.ones(3), {"x": (jnp.ones(3), jnp.ones(3))})
    assert nothing.metric_means(jnp.float32(1))["x"] == 0


def test_parts_of_a_batch_add_up() -> None:
    def whole(*masks: Any) -> Sums:
        parts = [simpo(SimpoConfig(**SIZES), pairs_of(LOGPROBS, LENGTHS, mask, LOGPROBS)) for mask in masks]
        return jax.tree.map(lambda *values: sum(values), *parts)

    one, two = whole([1, 1, 1]), whole([1, 0, 0], [0, 1, 1])
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert left == pytest.approx(float(right), rel=1e-6)


@pytest.mark.slow
def test_an_objective_of_another_package_trains(tmp_path: Path) -> None:
    settings = TinyRun(objective="simpo", steps=8, learning_rate=1e-2, mesh={"fsdp": 2, "context": 2})
    stats = run_job(tiny_job(tmp_path, settings), Silent())
    records = [record for record in read_log(tmp_path / METRICS) if "loss" in record]
    assert len(records) == 8 and stats["loss"] == records[-1]["loss"] < records[0]["loss"] - 0.1
    assert records[-1]["margins"] > records[0]["margins"] and 4 < records[0]["chosen_nll"] < 6


def test_its_means_are_those_of_one_device_without_parts() -> None:
    mesh, rows = build_mesh(MeshConfig(replica=2, context=2)), rows_of(TinyRun(objective="simpo"))
    objective, params = objective_of("simpo"), random_params(MODEL)
    host = next(one_epoch(rows, global_batch_size=rows.num_rows))
    alone = jax.jit(objective)(params, host)
    means = {"loss": alone.loss / alone.count, **alone.metric_means(alone.count)}
    measured = heldout_means(MODEL, objective, rows, 4, mesh)(params)
    assert measured == pytest.approx({f"heldout_{name}": float(mean) for name, mean in means.items()}, rel=1e-5)
