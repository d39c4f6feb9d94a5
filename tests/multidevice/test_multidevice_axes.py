"""Every mesh axis, alone and together, gives one device's loss and gradients: dense models and mixtures of experts."""

from functools import cache, partial
from itertools import combinations
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lifecycle.model.config import DrafterConfig, Precision, WeightFormat
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.params import Params
from lifecycle.model.stacks import DRAFTER
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of
from lifecycle.training.batches import one_epoch
from lifecycle.training.served import served_by
from lifecycle.training.state import TrainState, state_shardings
from lifecycle.training.step import make_train_step
from tests.multidevice.meshes import LONG, MODELS, PAIRWISE, every_case

CLOSE = 1e-5
ROUNDED = 0.45  # of a gradient's norm, by 8-bit products of models as narrow as these; half a gradient is off by 0.5
NOISE = 0.1
# Gradients as they come: the update is their negative, and what the state keeps is they.
GRADIENT = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))

# A vocabulary of its own, of which a mesh has parts.
DRAFTED = MODELS["projection"].model_copy(update={"drafter": DrafterConfig(vocab_size=48, d_ff=32)})
KNOWN = MODELS | {"drafted": DRAFTED}

long = partial(pytest.param, marks=pytest.mark.long)

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


@cache
def fresh_params(model: str) -> Params:
    """On one device; `test_multidevice_mesh.py` has a state created on a mesh. Biases and sinks start at zero and norms
    at one: noise shows whether each of them is cut right."""
    draw = np.random.default_rng(1)
    fresh = jax.device_get(random_params(KNOWN[model]))
    noisy = jax.tree.map(lambda x: x + NOISE * draw.standard_normal(x.shape, np.float32), fresh)
    if DRAFTER in noisy:
        noisy[DRAFTER][VOCABULARY]["ids"] = np.arange(0, 96, 2, dtype=np.float32)
    return noisy


def first_step(model: str, objective: str = "next_token", /, **settings: Any) -> tuple[dict[str, float], Any, Any]:
    """(metrics, gradients, parameters after it) of one step, with two micro-batches of packed rows or more."""
    return _first_step(model, objective, **settings)


@cache
def _first_step(
    model: str,
    objective: str,
    loss_chunks: int = 1,
    precision: Precision | None = None,
    grad_accum: int = 2,
    weights: WeightFormat | None = None,
    **axes: int,
) -> tuple[dict[str, float], Any, Any]:
    config, mesh = KNOWN[model], build_mesh(MeshConfig(**axes))
    shardings = state_shardings(config, GRADIENT, mesh)
    settings = {"mtp_weight": 0.3} if config.num_mtp_modules and objective == "next_token" else {}
    summed = objective_of(objective, config, remat={}, loss_chunks=loss_chunks, precision=precision, **settings)
    served = served_by(config, TinyRun(objective=objective).train().model_copy(update={"weights": weights}), mesh)
    step = make_train_step(summed, GRADIENT, mesh, shardings, grad_accum, config.bias_rate, served=served)
    host = next(one_epoch(rows_of(TinyRun(objective=objective)), global_batch_size=16))
    params = fresh_params(model.removesuffix(" ring"))
    begun = jax.device_get(GRADIENT.init(params))  # arrays of a device would be cut by programs, one for each shape
    state = jax.device_put(TrainState(params, {}, begun, np.int32(0)), shardings)
    state, metrics = step(state, shard_batch(host, mesh))
    logged: dict[str, float] = {key: float(value) for key, value in metrics.items()}
    return logged, jax.device_get(state.opt_state[0].trace), jax.device_get(state.params)


def test_each_kind_of_model_meets_each_axis_and_each_axis_each_other() -> None:
    for kind in ("dense", "experts", "projection", "latent"):
        assert {axis for name, axes in PAIRWISE + LONG if name == kind for axis in axes} == set(AXES)
    met = {frozenset(pair) for _, axes in PAIRWISE for pair in combinations(axes, 2)}
    assert met == {frozenset(pair) for pair in combinations(AXES, 2)}


@pytest.mark.parametrize(("model", "axes"), every_case())
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(model: str, axes: dict[str, int]) -> None:
    """A ring's too, with windows, segments, sinks and rematerialisation: keys and values travel round the context axis,
    and one device's attention is the usual one."""
    assert_equal(first_step(model, **axes), first_step(model.removesuffix(" ring")))


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "axes"),
    [("dense", {"replica": 2, "fsdp": 2, "context": 2}), long("projection", {"fsdp": 4, "tensor": 2})],
)
def test_chunks_of_the_vocabulary_give_the_loss_and_gradients_of_one_device(model: str, axes: dict[str, int]) -> None:
    """Of a head that is the embedding, and of one of its own under a soft cap, gathered chunk by chunk."""
    assert_equal(first_step(model, loss_chunks=4, **axes), first_step(model))


@pytest.mark.long
def test_preferences_on_a_mesh_are_those_of_one_device() -> None:
    """By a pipeline, with answers cut in two, in chunks of a vocabulary that is sharded."""
    axes = {"stage": 2, "context": 2, "tensor": 2}
    assert_equal(first_step("projection", "dpo", loss_chunks=4, **axes), first_step("projection", "dpo"))


@pytest.mark.parametrize(
    ("model", "weights", "axes"),
    [
        long("projection", "int4", {"replica": 2, "fsdp": 2, "tensor": 2}),
        long("projection", "fp8", {"fsdp": 2, "context": 2, "tensor": 2}),
        long("experts", "int8", {"stage": 2, "fsdp": 2, "expert": 2}),
    ],
)
def test_weights_for_a_format_are_rounded_on_a_mesh_as_on_one_device(
    model: str, weights: WeightFormat, axes: dict[str, int]
) -> None:
    """The devices of `fsdp` have 16 rows each: every group is cut."""
    found, expected = first_step(model, weights=weights, **axes), first_step(model, weights=weights)
    assert_equal(found, expected)
    assert expected[0]["loss"] != first_step(model)[0]["loss"]


@pytest.mark.long
def test_a_drafter_on_a_mesh_learns_what_it_does_on_one_device() -> None:
    axes = {"replica": 2, "fsdp": 2, "tensor": 2}
    assert_equal(first_step("drafted", "eagle", **axes), first_step("drafted", "eagle"))


@pytest.mark.parametrize(
    ("model", "objective", "precision", "axes"),
    [
        pytest.param(
            "projection", "next_token", "int8", {"replica": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow
        ),
        long("dense", "next_token", "int8", {"replica": 2, "fsdp": 2, "tensor": 2}),
        long("dense", "dpo", "int8", {"stage": 2, "context": 2, "tensor": 2}),
        long("projection", "next_token", "fp8", {"fsdp": 2, "expert": 2, "context": 2}),
        long("experts", "next_token", "int8", {"expert": 2, "context": 2, "tensor": 2}),
        long("experts", "next_token", "fp8", {"replica": 2, "stage": 2, "fsdp": 2}),
        long("latent", "next_token", "int8", {"stage": 2, "fsdp": 2, "expert": 2}),
    ],
)
def test_8_bit_products_give_gradients_near_those_of_one_device(
    model: str, objective: str, precision: Precision, axes: dict[str, int]
) -> None:
    """A device rounds its own rows and shards together, so a mesh has scales of its own, and the difference from plain
    products is that of rounding; a gradient that is counted twice or half would be further off."""
    metrics, grads, _ = first_step(model, objective, precision=precision, **axes)
    expected, exact, _ = first_step(model, objective)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=0.01)
    assert metrics["loss"] != expected["loss"]
    assert furthest(grads, exact) < ROUNDED


@pytest.mark.long
@pytest.mark.parametrize(("model", "objective"), [("projection", "next_token"), ("dense", "dpo")])
def test_a_pipeline_rounds_row_by_row(model: str, objective: str) -> None:
    """As one device does with a row in each micro-batch; a few values that lie between two are rounded differently."""
    axes = {"replica": 2, "stage": 2, "fsdp": 2}
    metrics, grads, _ = first_step(model, objective, precision="int8", **axes)
    expected, alone, _ = first_step(model, objective, precision="int8", grad_accum=16)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=CLOSE)
    assert furthest(grads, alone) < ROUNDED / 10


def furthest(grads: Any, exact: Any) -> float:
    """The largest distance of the gradient of a stack of matrices, relative to its norm, if it has any."""
    found = dict(jax.tree_util.tree_leaves_with_path(grads))
    stacks = [(path, own) for path, own in jax.tree_util.tree_leaves_with_path(exact) if own.ndim > 2 and own.any()]
    off = {jax.tree_util.keystr(path): np.linalg.norm(found[path] - own) / np.linalg.norm(own) for path, own in stacks}
    print({name: round(float(value), 4) for name, value in off.items()})
    return max(off.values())


def assert_equal(step: tuple[Any, ...], on_one_device: tuple[Any, ...]) -> None:
    metrics, grads, params = step
    expected, exact, updated = on_one_device
    assert metrics == pytest.approx(expected, rel=CLOSE, abs=CLOSE)
    largest = 0.0
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        own = dict(jax.tree_util.tree_leaves_with_path(exact))[path]
        np.testing.assert_allclose(grad, own, atol=CLOSE, rtol=0, err_msg=jax.tree_util.keystr(path))
        largest = max(largest, np.abs(own).max())
    assert largest > 1e-2
    for found, own in zip(jax.tree.leaves(params), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(found, own, atol=CLOSE, rtol=0)
