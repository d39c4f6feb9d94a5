"""Objectives against their papers' formulas, computed by NumPy in float64 from full logits."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import head, logits
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.objectives.likelihoods import GroupLikelihoods, TokenLikelihoods
from lifecycle.training.objectives.objective import Objective, group_logprobs

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

WHOLE_MODEL = 1e-5


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(MODEL)


@pytest.fixture(scope="module")
def pairs() -> dict[str, np.ndarray]:
    host = next(one_epoch(rows_of(TinyRun(objective="dpo")), global_batch_size=4))
    host["group_mask"][1, 0] = 0  # a pair that does not count
    return host


def dpo(model: ModelConfig = MODEL, **settings: Any) -> Objective:
    return objective_of("dpo", model, **{"loss": "sigmoid", **settings})


def orpo(model: ModelConfig = MODEL, **settings: Any) -> Objective:
    return objective_of("orpo", model, **settings)


@jax.jit
def full_logits(params: Any, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
    return logits(MODEL, params, forward(MODEL, params, tokens, positions, segment_ids))


def log_probabilities(params: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """`log p(target)` at each position, float64, from full logits."""
    arrays = (batch[name] for name in ("tokens", "positions", "segment_ids"))
    full = np.asarray(full_logits(params, *arrays), np.float64)
    top = full.max(-1, keepdims=True)
    normal = full - top - np.log(np.exp(full - top).sum(-1, keepdims=True))
    return np.take_along_axis(normal, batch["targets"][..., None], -1)[..., 0]


@pytest.fixture(scope="module")
def answers(params: dict[str, Any], pairs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each pair that counts: sums of log-probabilities, lengths and reference values, (chosen, rejected)."""
    found = log_probabilities(params, pairs)
    listed = []
    for row, pair in np.argwhere(pairs["group_mask"] > 0):
        segments, learns = pairs["segment_ids"][row], pairs["loss_mask"][row] > 0
        learned = [(segments == segment) & learns for segment in (2 * pair + 1, 2 * pair + 2)]
        listed.append({
            "sums": np.array([found[row][where].sum() for where in learned]),
            "lengths": np.array([where.sum() for where in learned]),
            "reference": pairs["ref_logprobs"][row, pair].astype(np.float64),
        })  # fmt: skip
    return listed


def log_sigmoid(x: Any) -> Any:
    return -np.log1p(np.exp(-x))


def run(objective: Objective, params: Any, batch: dict[str, np.ndarray]) -> tuple[float, float, dict[str, float]]:
    sums = jax.jit(objective)(params, batch)
    return float(sums.loss), float(sums.count), {name: float(value) for name, value in sums.metrics.items()}


def test_next_token_is_the_masked_negative_log_likelihood(params: dict[str, Any]) -> None:
    batch = next(one_epoch(rows_of(TinyRun()), global_batch_size=4))
    loss, count, aux = run(objective_of("next_token"), params, batch)
    assert loss == pytest.approx(-(log_probabilities(params, batch) * batch["loss_mask"]).sum(), rel=WHOLE_MODEL)
    assert count == batch["loss_mask"].sum() < batch["loss_mask"].size and aux == {}


def test_log_probabilities_of_packed_pairs(
    params: dict[str, Any], pairs: dict[str, np.ndarray], answers: list[dict[str, Any]]
) -> None:
    def likelihoods(params: Any, batch: Any, chunks: int = 1) -> Any:
        hidden = forward(MODEL, params, batch["tokens"], batch["positions"], batch["segment_ids"])
        tokens = TokenLikelihoods(batch, hidden, head(MODEL, params), None, chunks)
        seen = GroupLikelihoods(batch, 2, lambda batch: tokens)
        return seen.logprobs, seen.lengths

    sums, lengths = jax.jit(likelihoods)(params, pairs)
    in_chunks, _ = jax.jit(partial(likelihoods, chunks=4))(params, pairs)
    np.testing.assert_allclose(in_chunks, sums, rtol=WHOLE_MODEL)
    where = pairs["group_mask"] > 0
    assert where.sum() == len(answers) > 4 and len({tuple(e["lengths"]) for e in answers}) > 3
    np.testing.assert_allclose(sums[where], [e["sums"] for e in answers], rtol=WHOLE_MODEL)
    np.testing.assert_array_equal(lengths[where], [e["lengths"] for e in answers])
    no_pair = ~where
    no_pair[1, 0] = False  # masked by hand: its segments are there
    assert no_pair.any() and not np.asarray(sums)[no_pair].any() and not np.asarray(lengths)[no_pair].any()


def test_dpo(params: dict[str, Any], pairs: dict[str, np.ndarray], answers: list[dict[str, Any]]) -> None:
    beta = 0.3
    loss, count, aux = run(dpo(beta=beta, loss={"sigmoid": 1, "sft": 0.7}), params, pairs)
    rewards = np.array([beta * (e["sums"] - e["reference"]) for e in answers])
    margins = rewards[:, 0] - rewards[:, 1]
    sft = -sum(e["sums"][0] for e in answers) / sum(e["lengths"][0] for e in answers)
    assert count == len(answers)
    assert loss / count == pytest.approx(-log_sigmoid(margins).mean() + 0.7 * sft, rel=WHOLE_MODEL)
    expected = {
        "rewards/margins": margins.sum(), "rewards/accuracies": (margins > 0).sum(),
        "likelihood_accuracy": sum(e["sums"][0] / e["lengths"][0] > e["sums"][1] / e["lengths"][1] for e in answers),
        "rewards/chosen": rewards[:, 0].sum(), "rewards/rejected": rewards[:, 1].sum(),
        "logps/chosen": sum(e["sums"][0] for e in answers), "logps/rejected": sum(e["sums"][1] for e in answers),
    }  # fmt: skip
    assert {name: aux[name] for name in expected} == pytest.approx(expected, rel=WHOLE_MODEL)


@pytest.mark.parametrize("precision", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_dpo_at_the_reference_is_log_two_and_half_right(
    params: dict[str, Any], pairs: dict[str, np.ndarray], precision: Precision | None
) -> None:
    reference = jax.jit(partial(group_logprobs, MODEL, size=2, precision=precision))(params, pairs)
    loss, count, aux = run(dpo(precision=precision), params, pairs | {"ref_logprobs": np.asarray(reference)})
    assert loss / count == pytest.approx(np.log(2), rel=1e-5) and aux["rewards/margins"] == pytest.approx(0, abs=1e-4)
    other = jax.jit(partial(group_logprobs, MODEL, size=2, precision=None if precision else "int8"))(params, pairs)
    assert np.abs(other - reference).max() > 1e-2, "a reference in another precision would count as a preference"


def test_orpo(params: dict[str, Any], pairs: dict[str, np.ndarray], answers: list[dict[str, Any]]) -> None:
    lam = 0.25
    loss, count, aux = run(orpo(beta=lam, form="paper"), params, pairs)
    means = np.array([e["sums"] / e["lengths"] for e in answers])
    odds = np.log(np.exp(means) / (1 - np.exp(means)))
    margins = odds[:, 0] - odds[:, 1]
    assert count == len(answers)
    assert loss == pytest.approx((-means[:, 0] - lam * log_sigmoid(margins)).sum(), rel=WHOLE_MODEL)
    assert aux["log_odds_chosen"] == pytest.approx(margins.sum(), rel=WHOLE_MODEL, abs=1e-4)
    assert aux["rewards/accuracies"] == aux["likelihood_accuracy"] == (means[:, 0] > means[:, 1]).sum()


@pytest.mark.parametrize("objective", [dpo, orpo])
def test_preferences_stay_finite_for_a_model_that_is_certain(
    params: dict[str, Any], pairs: dict[str, np.ndarray], objective: Any
) -> None:
    certain = params | {"head": params["head"] * 1e4}
    loss, grads = jax.jit(jax.value_and_grad(lambda p: objective()(p, pairs).loss))(certain)
    assert np.isfinite(loss) and all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [dpo, pytest.param(orpo, marks=pytest.mark.slow)])
def test_a_step_down_the_gradient_prefers_the_chosen_answers(
    params: dict[str, Any], pairs: dict[str, np.ndarray], objective: Any
) -> None:
    def loss_and_margin(params: Any) -> tuple[jax.Array, jax.Array]:
        sums = objective(beta=1.0)(params, pairs)
        return sums.loss, sums.metrics["rewards/margins"]

    run = jax.jit(jax.value_and_grad(loss_and_margin, has_aux=True))
    (_, before), grads = run(params)
    (_, after), _ = run(jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads))
    assert after > before
