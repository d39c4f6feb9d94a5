"""Formulas by themselves, on numbers: no model, no mesh. And one that another package adds."""

from functools import reduce
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.kernels.token_statistics import TokenStatistics
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.heldout import heldout_means
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.dpo import dpo, of_batch
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.orpo import orpo
from lifecycle.training.objectives.sums import Sums, largest_of, smallest_of, sums_over
from lifecycle.training.preference import DpoConfig, OrpoConfig
from tests.training.simpo import SimpoConfig, simpo

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

SIZES: dict[str, Any] = {"steps": 1, "seq_len": 8, "global_batch_size": 1}


def pairs_of(logprobs: Any, lengths: Any, mask: Any, reference: Any) -> GroupLikelihoods:
    """Pairs of one row, as a formula sees them: the tokens of an answer are equally likely."""
    sizes = np.ravel(lengths)
    segments = np.repeat(np.arange(1, sizes.size + 1), sizes)
    each = np.repeat(np.ravel(logprobs) / sizes, sizes)[None]
    batch = {
        "segment_ids": jnp.asarray(segments[None], jnp.int32), "loss_mask": jnp.ones(each.shape),
        "target_mask": jnp.ones(each.shape), "group_mask": jnp.asarray([mask], jnp.float32),
        "ref_logprobs": jnp.asarray([reference], jnp.float32),
    }  # fmt: skip
    zeros = jnp.zeros(each.shape)
    found = TokenStatistics(jnp.asarray(each, jnp.float32), zeros, zeros, zeros, zeros)
    tokens: Any = SimpleNamespace(statistics=lambda temperature, wanted: found)
    return GroupLikelihoods(batch, 2, lambda batch: tokens)


LOGPROBS, LENGTHS = [[-4.0, -6.0], [-3.0, -1.0], [-9.0, -9.0]], [[4, 2], [3, 1], [1, 1]]
PAIRS = pairs_of(LOGPROBS, LENGTHS, [1, 1, 0], [[-5, -5], [-2, -2], [0, 0]])


def log_sigmoid(x: float) -> float:
    return -float(np.log1p(np.exp(-x)))


def test_dpo_by_hand() -> None:
    settings = DpoConfig(**SIZES, beta=0.5, loss={"sigmoid": 1, "sft": 2.0})
    sums = dpo(settings, PAIRS, of_batch(settings, PAIRS))
    assert sums.count == 2
    assert sums.loss / 2 == pytest.approx((-log_sigmoid(1.0) - log_sigmoid(-1.0)) / 2 + 2 * 1, rel=1e-6)
    assert sums.metrics["rewards/margins"] == pytest.approx(0)
    assert sums.metrics["rewards/accuracies"] == 1 and sums.metrics["likelihood_accuracy"] == 1  # a tie is no hit


def test_orpo_by_hand() -> None:
    sums = orpo(OrpoConfig(**SIZES, beta=0.5, form="paper"), PAIRS, {})

    def log_odds(logprob: float) -> float:
        return logprob - float(np.log1p(-np.exp(logprob)))

    ratios = [log_sigmoid(log_odds(chosen) - log_odds(rejected)) for chosen, rejected in ((-1, -3), (-1, -1))]
    assert sums.loss == pytest.approx(1 + 1 - 0.5 * sum(ratios), rel=1e-6) and sums.count == 2
    assert sums.metrics["rewards/accuracies"] == 1


def test_a_metric_may_count_something_else() -> None:
    sums = simpo(SimpoConfig(**SIZES), PAIRS, {})
    assert (sums.metrics["chosen_nll"], sums.counts["chosen_nll"], sums.count) == (7, 7, 2)
    assert sums.metric_means(sums.count)["chosen_nll"] == 1  # over tokens
    nothing = sums_over(jnp.zeros(3), jnp.ones(3), {"x": (jnp.ones(3), jnp.ones(3))})
    assert nothing.metric_means(jnp.float32(1))["x"] == 0


def test_parts_of_a_batch_add_up() -> None:
    def whole(*masks: Any) -> Sums:
        parts = [simpo(SimpoConfig(**SIZES), pairs_of(LOGPROBS, LENGTHS, mask, LOGPROBS), {}) for mask in masks]
        return reduce(add, parts)

    one, two = whole([1, 1, 1]), whole([1, 0, 0], [0, 1, 1])
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert left == pytest.approx(float(right), rel=1e-6)


PARTS = st.lists(st.lists(st.floats(-9, 9, width=32), max_size=3), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(PARTS)
def test_extremes_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    def of(values: list[float]) -> Sums:
        numbers = jnp.asarray([*values, *[0.0] * (3 - len(values))], jnp.float32)
        is_there = jnp.asarray(np.arange(3) < len(values), jnp.float32)
        largest, smallest = (limit(numbers, is_there) for limit in (largest_of, smallest_of))
        return Sums(
            numbers.sum(), jnp.asarray(float(len(values))), largest={"most": largest}, smallest={"least": smallest}
        )

    whole = reduce(add, map(of, parts), of([]).empty())
    every = [value for part in parts for value in part]
    assert whole.extremes == {"most": max(every, default=-np.inf), "least": min(every, default=np.inf)}
    assert whole.count == len(every)
    halved = whole.with_sums(lambda tree: jax.tree.map(lambda x: x / 2, tree))
    assert halved.extremes == whole.extremes and halved.count == len(every) / 2
    assert whole.with_extremes(lambda tree: tree).extremes == whole.extremes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {}}, "name one at least"),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "label_smoothing is a setting of the losses"),
        ({"loss": "exo_pair"}, "needs label_smoothing above 0"),
        ({"loss": "aot", "divergence": "js_divergence"}, "is defined for divergence=reverse_kl only"),
        ({"divergence_alpha": 0.3}, "divergence_alpha is a setting of"),
        ({"loss": {"sigmoid": 1, "sft": 1}, "is_weighted": True}, "is_weighted weighs pairs"),
        ({"discopop_tau": 0.1}, "discopop_tau is a setting of"),
        ({"loss": "sigmoidal"}, "loss"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DpoConfig, SIZES | settings)


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
    means = {"loss": alone.loss / alone.count, "count": alone.count, **alone.metric_means(alone.count)}
    measured = heldout_means(MODEL, objective, rows, 4, mesh)(params)
    assert measured == pytest.approx({f"heldout_{name}": float(mean) for name, mean in means.items()}, rel=1e-5)
