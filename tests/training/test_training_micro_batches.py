"""Micro-batches without a target are passed over: steps and measurements never compute them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.group_rows import Group, packed_groups
from lifecycle.training.micro_batches import micro_batches, of_filled
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.state import TrainState, state_shardings
from lifecycle.training.step import make_train_step
from tests.rl.toy_policy import MODEL, batches_of, settings

DESCENT = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))


def spoiled(params: Any, batch: Any, context: Any) -> Sums:
    """Not a number where a micro-batch has no target."""
    mask, tokens = batch["loss_mask"], batch["tokens"]
    own = (mask * jnp.cos(params["norm"]["scale"].sum() * tokens)).sum()
    return Sums(own * mask.sum() / mask.sum(), mask.sum())


def rows(num_filled: int) -> dict[str, np.ndarray]:
    """16 rows of 8 positions, of which the first ones of four micro-batches are filled."""
    groups = [Group([EncodedRow([1, 2, 3, 4 + row, 5], [False, False, True, True, True])]) for row in range(num_filled)]
    return packed_groups(groups, 8, 16, grad_accum=4)


@pytest.mark.parametrize("num", [1, 4, 7, 16])
def test_empty_rows_are_those_of_the_last_micro_batches(num: int) -> None:
    parts = np.asarray(micro_batches({"mask": jnp.asarray(rows(num)["group_mask"])}, 4)["mask"]).any(2)
    assert parts.reshape(-1).tolist() == [True] * num + [False] * (16 - num)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(), id="one device", marks=pytest.mark.slow),
        pytest.param(MeshConfig(replica=2, fsdp=2), id="four"),
    ],
)
def test_a_step_passes_over_empty_micro_batches(mesh: MeshConfig) -> None:
    devices = build_mesh(mesh)
    shardings, params = state_shardings(MODEL, DESCENT, devices), random_params(MODEL)

    def gradients(num: int, objective: Objective) -> tuple[float, float]:
        batch = shard_batch({name: rows(num)[name] for name in ("tokens", "loss_mask", "segment_ids")}, devices)
        state = TrainState(jax.tree.map(jnp.copy, params), {}, DESCENT.init(params), jnp.int32(0))
        _, metrics = make_train_step(objective, DESCENT, devices, shardings, grad_accum=4)(state, batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    found = gradients(8, Objective(spoiled, has_empty_rows=True))
    assert np.isfinite(found).all() and found[1] > 0
    assert found == pytest.approx(gradients(16, Objective(of_first_eight, has_empty_rows=True)), rel=1e-5)
    assert np.isnan(gradients(8, Objective(spoiled))).all()


def of_first_eight(params: Any, batch: Any, context: Any) -> Sums:
    """As if the rows with later tokens were not there."""
    mask = batch["loss_mask"] * (batch["tokens"][:, 3:4] < 12)
    return Sums((mask * jnp.cos(params["norm"]["scale"].sum() * batch["tokens"])).sum(), mask.sum())


def test_values_of_rows_come_back_in_their_places() -> None:
    batch = {name: jnp.asarray(column) for name, column in rows(6).items()}
    found = of_filled(lambda part: part["tokens"] / part["loss_mask"].sum(), batch, 4, build_mesh(MeshConfig()))
    first, second = found[::4], found[1::4]
    np.testing.assert_allclose(first, batch["tokens"][::4] / 12)
    np.testing.assert_allclose(second, batch["tokens"][1::4] / 6)
    assert not found[2::4].any() and not found[3::4].any()


@pytest.mark.long
def test_what_is_measured_of_rollouts_does_not_depend_on_micro_batches() -> None:
    start = random_params(MODEL)
    whole, parts = (
        batches_of(settings(beta=0.1, global_batch_size=16, grad_accum=accum), start).batch(0, start)
        for accum in (1, 4)
    )
    assert {"reference_logprobs"} <= whole.keys() == parts.keys()
    order = np.argsort(np.arange(16).reshape(-1, 4).T.reshape(-1))
    for name, column in whole.items():
        np.testing.assert_allclose(parts[name], column[order], atol=1e-6)
