"""One step, any mesh: eight virtual devices give one device's losses and gradients, their state really sharded."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.model.params import init_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import batch_sharding, shard_batch
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN, example
from lifecycle.training.batches import RowBatches
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.heldout import heldout_means
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.reference import REFERENCE, reference_logprobs
from lifecycle.training.state import TrainState, init_state, state_shardings
from lifecycle.training.step import make_train_step

CLOSE = 1e-5
STEPS = 10
MESHES = {1: MeshConfig(), 8: MeshConfig(replica=2, fsdp=2, tensor=2)}


@dataclass(frozen=True)
class Curve:
    """A short run: its losses, its first gradient by leaf, and the state after the last step."""

    losses: np.ndarray
    gradient: list[np.ndarray]
    state: TrainState


@cache
def curve(objective: str, optimizer_name: str, num_devices: int) -> Curve:
    """Ten steps with packing and two micro-batches; the optimizer's chain begins with one that keeps the gradient."""
    settings = TinyRun(objective=objective, optimizer=optimizer_name)
    mesh = build_mesh(MESHES[num_devices])
    optimizer = optax.chain(optax.trace(decay=0.0), build_optimizer(settings.train().optimizer, MODEL, STEPS, mesh))
    shardings = state_shardings(MODEL, optimizer, mesh)
    state = init_state(MODEL, optimizer, shardings, jax.random.key(0))
    step = make_train_step(objective_of(objective), optimizer, mesh, shardings, settings.grad_accum)
    losses, gradient = [], []
    batches = RowBatches.on_mesh(rows_of(settings), settings.global_batch_size, mesh)
    for number in range(STEPS):
        state, metrics = step(state, shard_batch(batches.batch(number), mesh))
        losses.append(float(metrics["loss"]))
        gradient = gradient or [np.asarray(leaf) for leaf in jax.tree.leaves(state.opt_state[0].trace)]
    batches.close()
    return Curve(np.array(losses), gradient, state)


@pytest.mark.parametrize(
    ("objective", "optimizer"),
    [
        ("next_token", "muon"),
        pytest.param("next_token", "adafactor", marks=pytest.mark.matrix),
        pytest.param("dpo", "adamw", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.long
def test_eight_devices_give_the_curve_and_gradients_of_one(objective: str, optimizer: str) -> None:
    one, eight = curve(objective, optimizer, 1), curve(objective, optimizer, 8)
    print(f"loss {np.abs(one.losses - eight.losses).max():.1e}")
    print(f"gradient {max(np.abs(a - b).max() for a, b in zip(one.gradient, eight.gradient, strict=True)):.1e}")
    np.testing.assert_allclose(eight.losses, one.losses, atol=CLOSE, rtol=0)
    for found, exact in zip(eight.gradient, one.gradient, strict=True):
        np.testing.assert_allclose(found, exact, atol=CLOSE, rtol=0)
    assert one.losses[-1] < one.losses[0] - 0.5  # a curve, not a line
    assert max(np.abs(leaf).max() for leaf in one.gradient) > 1e-2


@pytest.mark.slow
def test_parameters_and_optimizer_state_are_really_sharded() -> None:
    state = curve("next_token", "muon", 8).state

    def pieces(array: jax.Array) -> set[tuple[int, ...]]:
        assert len(array.addressable_shards) == 8
        return {shard.data.shape for shard in array.addressable_shards}

    layers = MODEL.num_layers
    assert pieces(state.params["embed"]) == {(48, 16)}
    assert pieces(state.params["blocks"]["0+1"]["attention"]["q"]) == {(layers, 16, 16)}
    assert pieces(state.params["blocks"]["0+1"]["attention"]["o"]) == {(layers, 16, 16)}
    assert pieces(state.params["blocks"]["0+1"]["feed_forward"]["down"]) == {(layers, 32, 16)}
    assert pieces(state.params["norm"]["scale"]) == {(32,)}
    whole = {array.shape: pieces(array) for array in jax.tree.leaves(state.params)}
    copies = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 0]
    assert len(copies) > 1.5 * len(jax.tree.leaves(state.params))  # the gradient, momentum or both moments
    assert all(pieces(copy) == whole[copy.shape] for copy in copies)


def test_initial_values_do_not_depend_on_the_mesh() -> None:
    optimizer = optax.identity()
    fresh = []
    for config in MESHES.values():
        shardings = state_shardings(MODEL, optimizer, build_mesh(config))
        fresh.append(init_state(MODEL, optimizer, shardings, jax.random.key(0)).params)
    chex.assert_trees_all_equal(*jax.device_get(fresh), strict=True)


@pytest.mark.long
def test_measurements_do_not_depend_on_the_mesh(tmp_path: Path) -> None:
    """Held-out means and reference log-probabilities, the last batch filled up with padding."""
    settings = TinyRun(objective="dpo")
    state = curve("dpo", "adamw", 1).state
    draw = np.random.default_rng(1)
    pairs = [(example(draw, [1, 2], 3 + i % 5), example(draw, [1, 2], 3)) for i in range(21)]
    rows = GroupRows([Group(pair) for pair in pairs], SEQ_LEN, seed=0)
    found: list[tuple[dict[str, float], Any]] = []
    for config in MESHES.values():
        mesh = build_mesh(config)
        params = jax.device_put(jax.device_get(state.params), state_shardings(MODEL, optax.identity(), mesh).params)
        measured = heldout_means(MODEL, objective_of("dpo"), rows_of(settings), 8, mesh)(params)
        table = tmp_path / f"{len(found)}.npz"
        found.append((measured, reference_logprobs(MODEL, params, rows, 4, mesh, table)[REFERENCE]))
    assert found[0][0] == pytest.approx(found[1][0], abs=CLOSE)
    assert found[0][1].shape == (21, 2) and (found[0][1] < 0).all()
    np.testing.assert_allclose(found[0][1], found[1][1], atol=10 * CLOSE)  # sums over up to seven tokens


def test_micro_batches_are_cut_without_moving_rows_between_devices() -> None:
    """The compiled step sums over the mesh and exchanges nothing else: a micro-batch is already where it is needed."""

    def loss_of(params: Any, batch: Any, context: Any) -> Any:
        loss = (batch["loss_mask"] * jnp.cos(params["norm"]["scale"].sum() * batch["tokens"])).sum()
        return Sums(loss, batch["loss_mask"].sum())

    mesh, optimizer = build_mesh(MeshConfig(replica=4)), optax.identity()
    shardings = state_shardings(MODEL, optimizer, mesh)
    shapes = jax.eval_shape(lambda key: init_params(MODEL, key), jax.random.key(0))
    place_at = partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    state = TrainState(place_at(shapes, shardings.trained), {}, optax.EmptyState(), jax.ShapeDtypeStruct((), jnp.int32))
    batch = jax.eval_shape(lambda: {name: jnp.zeros((16, 8)) for name in ("tokens", "loss_mask", "segment_ids")})
    batch = place_at(batch, {name: batch_sharding(mesh, name) for name in batch})
    step = make_train_step(Objective(loss_of), optimizer, mesh, shardings, grad_accum=2)
    program = step.lower(state, batch).compile().as_text() or ""
    assert "all-reduce" in program
    for exchange in ("all-to-all", "all-gather", "collective-permute"):
        assert exchange not in program
