"""The step: accumulation is exact, one program, the same bits from the same seed, nothing moved unasked."""

import statistics
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.state import TrainState, state_from_params, state_shardings
from lifecycle.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

EXACT = 1e-6
MESH = build_mesh(MeshConfig())
# its state after a step is the gradient, its update is minus the gradient
GRADIENT = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


def stepped(
    objective: str, grad_accum: int, batch: dict[str, jax.Array], params: Any
) -> tuple[TrainState, dict[str, float]]:
    state = TrainState(jax.tree.map(jnp.copy, params), {}, GRADIENT.init(params), jnp.int32(0))
    state, metrics = step_of(objective, grad_accum)(state, batch)
    return state, jax.device_get(metrics)


@cache
def step_of(objective: str, grad_accum: int) -> Any:
    shardings = state_shardings(MODEL, GRADIENT, MESH)
    return make_train_step(objective_of(objective), GRADIENT, MESH, shardings, grad_accum)


@dataclass(frozen=True)
class Steps:
    """One step on one batch in four micro-batches."""

    objective: str
    batch: dict[str, jax.Array]
    parts: tuple[TrainState, dict[str, float]]


@pytest.fixture(
    scope="module", params=["next_token", *(pytest.param(one, marks=pytest.mark.long) for one in ("dpo", "orpo"))]
)
def steps(request: pytest.FixtureRequest, params: Any) -> Steps:
    """A real packed batch; the masks of its micro-batches are made very unequal."""
    name = request.param
    host = next(one_epoch(rows_of(TinyRun(objective=name)), global_batch_size=8))
    mask = "loss_mask" if name == "next_token" else "group_mask"
    host[mask][::2] *= np.arange(host[mask].shape[1]) < 1  # every second row keeps at most its first position or pair
    batch = shard_batch(host, MESH)
    return Steps(name, batch, stepped(name, 4, batch, params))


def assert_close(left: Any, right: Any, tolerance: float) -> None:
    chex.assert_trees_all_close(left, right, atol=tolerance, rtol=0)


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch(steps: Steps, params: Any) -> None:
    whole, metrics = stepped(steps.objective, 1, steps.batch, params)
    parts, others = steps.parts
    assert metrics.keys() == others.keys() and metrics["count"] == others["count"] > 0
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=EXACT, abs=EXACT), name
    assert_close(whole.opt_state, parts.opt_state, EXACT)  # the mean gradient
    assert_close(whole.params, parts.params, EXACT)


def test_the_loss_is_the_mean_over_the_count_and_the_gradient_its_gradient(steps: Steps, params: Any) -> None:
    def mean(params: Any) -> jax.Array:
        sums = objective_of(steps.objective)(params, steps.batch)
        return sums.loss / sums.count

    value, grads = jax.jit(jax.value_and_grad(mean))(params)
    state, metrics = steps.parts
    assert metrics["loss"] == pytest.approx(float(value), rel=EXACT)
    assert metrics["grad_norm"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-5)
    assert metrics["update_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-6)  # this optimizer's update is -grads
    assert_close(state.opt_state[0].trace, grads, EXACT)
    assert_close(state.params, jax.tree.map(jnp.subtract, params, grads), EXACT)
    assert state.step == 1


def test_a_batch_without_any_loss_changes_nothing(params: Any) -> None:
    batch = shard_batch(next(one_epoch(rows_of(TinyRun()), global_batch_size=8)), MESH)
    batch["loss_mask"] = jnp.zeros_like(batch["loss_mask"])
    state, metrics = stepped("next_token", 4, batch, params)  # the program of `steps`
    assert metrics["loss"] == metrics["count"] == metrics["grad_norm"] == 0
    assert_close(state.params, params, 0)


def test_many_steps_are_one_program_with_the_same_bits_and_no_transfers(params: Any) -> None:
    """Two runs of five steps from the same weights, in one program, its state donated and nothing moved."""
    settings = TinyRun()
    optimizer = build_optimizer(settings.train().optimizer, MODEL, 5, MESH)
    shardings = state_shardings(MODEL, optimizer, MESH)
    traced = []

    def loss_of(params: Any, batch: Any, context: Any) -> Any:
        traced.append(1)
        return objective_of("next_token").loss(params, batch, context)

    step: Any = make_train_step(Objective(loss_of), optimizer, MESH, shardings, grad_accum=1)
    epoch = one_epoch(rows_of(settings), global_batch_size=4)
    batches = [shard_batch(next(epoch), MESH) for _ in range(5)]
    ends, losses = [], []
    for _ in range(2):
        state = state_from_params(params, optimizer, shardings)
        kept = []
        for batch in batches:
            before = state.params["embed"]
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            assert before.is_deleted()  # donated: no second copy of the weights
            kept.append(metrics["loss"])
        ends.append(state)
        losses.append([float(loss) for loss in kept])
    assert len(traced) == 1 and step._cache_size() == 1
    assert losses[0] == losses[1] and losses[0][-1] != losses[0][0]
    chex.assert_trees_all_equal(*ends, strict=True)


def test_the_transfer_guard_sees_what_is_moved() -> None:
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
        jnp.add(jnp.ones(3), np.ones(3))


def test_fine_tuning_starts_from_given_parameters_with_fresh_moments(params: Any) -> None:
    optimizer = build_optimizer(TinyRun().train().optimizer, MODEL, 5, MESH)
    shardings = state_shardings(MODEL, optimizer, MESH)
    state = state_from_params(params, optimizer, shardings)
    assert_close(state.params, params, 0)
    assert state.step == 0 and jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_launching_a_step_takes_python_less_than_a_millisecond(params: Any) -> None:
    """What the host does for a step beside the devices' work: the launching thread's own CPU time, in the median."""
    optimizer = build_optimizer(TinyRun().train().optimizer, MODEL, 5, MESH)
    shardings = state_shardings(MODEL, optimizer, MESH)
    state = state_from_params(jax.tree.map(jnp.copy, params), optimizer, shardings)
    batch = shard_batch(next(one_epoch(rows_of(TinyRun()), global_batch_size=4)), MESH)
    step = make_train_step(objective_of("next_token"), optimizer, MESH, shardings).lower(state, batch).compile()
    seconds = []
    for _ in range(30):
        started = time.thread_time()
        state, _ = step(state, batch)
        seconds.append(time.thread_time() - started)
        jax.block_until_ready(state)
    assert statistics.median(seconds) < 1e-3
