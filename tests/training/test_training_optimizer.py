"""Schedules at their corners, clipping, weight decay, and Muon against the singular value decomposition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.model.parameter import Parameter
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import MODEL
from lifecycle.training.config import OptimizerConfig, ScheduleConfig
from lifecycle.training.muon import orthogonalise, scale_by_muon
from lifecycle.training.optimizer import build_optimizer, build_schedule

PEAK = 2e-3
ONE = build_mesh(MeshConfig())
LOWEST, HIGHEST = 0.81, 1.13  # singular values of what five quintic polynomials make of those above 1e-3


def rates(steps: int, **schedule: Any) -> np.ndarray:
    config = OptimizerConfig(learning_rate=PEAK, schedule=ScheduleConfig(**schedule))
    found = build_schedule(config, steps)
    return np.array([np.asarray(found(step), np.float64) for step in range(steps + 1)])


def test_warm_up_stable_decay() -> None:
    found = rates(100, kind="wsd", warmup_steps=10, decay_share=0.2, final_share=0.1)
    np.testing.assert_allclose(found[:10], PEAK * np.arange(1, 11) / 11, rtol=1e-5)
    np.testing.assert_allclose(found[10:81], PEAK, rtol=1e-5)
    np.testing.assert_allclose(found[80:101], PEAK * np.linspace(1, 0.1, 21), rtol=1e-5)


def test_a_decay_longer_than_what_the_warm_up_leaves_still_ends_with_the_run() -> None:
    found = rates(100, kind="wsd", warmup_steps=20, decay_share=1.0, final_share=0.0)
    np.testing.assert_allclose(found[20:101], PEAK * np.linspace(1, 0, 81), atol=1e-6 * PEAK)


def test_cosine() -> None:
    found = rates(100, kind="cosine", warmup_steps=20, final_share=0.1)
    expected = PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(81) / 80)) / 2)
    np.testing.assert_allclose(found[20:], expected, rtol=1e-4)
    assert found[0] == pytest.approx(PEAK / 21, rel=1e-5) and found[-1] == pytest.approx(0.1 * PEAK, rel=1e-5)


def test_constant_and_runs_shorter_than_the_warm_up() -> None:
    np.testing.assert_allclose(rates(5, kind="constant"), PEAK, rtol=1e-6)
    short = rates(3, kind="wsd", warmup_steps=10)
    assert short[0] > 0 and np.isfinite(short).all()


@given(st.sampled_from(["wsd", "cosine", "constant"]), st.integers(1, 12), st.integers(0, 15), st.floats(0, 1))
def test_every_step_of_every_schedule_moves_and_stays_below_the_peak(
    kind: str, steps: int, warmup: int, share: float
) -> None:
    found = rates(steps, kind=kind, warmup_steps=warmup, decay_share=share)[:steps]
    assert (found > 0).all() and (found <= PEAK * (1 + 1e-6)).all()


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(MODEL)


def first_update(params: dict[str, Any], grads: dict[str, Any], **settings: Any) -> tuple[dict[str, Any], Any]:
    config = OptimizerConfig(learning_rate=PEAK, schedule=ScheduleConfig(kind="constant"), **settings)
    optimizer = build_optimizer(config, MODEL, 10, ONE)
    return jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, grads)


def random_like(params: dict[str, Any], size: float = 1.0) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape) * size, jnp.float32), params)


def find_all(state: Any, name: str) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, name))
    return [getattr(node, name) for node in nodes if hasattr(node, name)]


def test_gradients_are_clipped_by_their_global_norm(params: dict[str, Any]) -> None:
    grads = random_like(params)
    norm = float(optax.global_norm(grads))
    for clip, scale in ((0.5, 0.5 / norm), (2 * norm, 1.0)):
        (moment,) = find_all(first_update(params, grads, clip_norm=clip)[1], "mu")
        np.testing.assert_allclose(moment["embed"], 0.1 * scale * grads["embed"], rtol=1e-4, atol=1e-9)


def test_adamw_is_optax_adamw(params: dict[str, Any]) -> None:
    grads = random_like(params, 1e-3)
    found = first_update(params, grads, weight_decay=0.1, clip_norm=1e9)[0]
    other = optax.adamw(PEAK, 0.9, 0.95, eps=1e-10, weight_decay=0.1)
    exact: Any = other.update(grads, other.init(params), params)[0]
    for name in ("embed", "head"):
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-5, atol=1e-9)
    found, exact = found["blocks"]["0+1"], exact["blocks"]["0+1"]
    np.testing.assert_allclose(found["attention"]["q"], exact["attention"]["q"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_shrinks_all_but_scales(params: dict[str, Any], name: str) -> None:
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = first_update(params, zero, name=name, weight_decay=0.5)[0]

    def check(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> None:
        expected = 0 * param if path[-1].key == "scale" else -PEAK * 0.5 * param
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-12)

    jax.tree_util.tree_map_with_path(check, updates, params)


def test_muon_takes_the_layers_matrices_and_adam_all_else(params: dict[str, Any]) -> None:
    updates, state = first_update(params, random_like(params), name="muon")
    (momentum,), (second,) = find_all(state, "momentum"), find_all(state, "nu")
    held = {name: {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(tree) if hasattr(x, "shape")}
            for name, tree in (("muon", momentum), ("adam", second))}  # fmt: skip
    everything = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert held["muon"] | held["adam"] == everything and not held["muon"] & held["adam"]
    assert held["muon"] == {n for n in everything if "blocks" in n and "scale" not in n}
    np.testing.assert_allclose(jnp.abs(updates["embed"]), PEAK, rtol=1e-3)  # Adam's first update is the sign


def test_a_muon_update_is_orthogonal_layer_by_layer_at_adams_size(params: dict[str, Any]) -> None:
    updates = first_update(params, random_like(params), name="muon")[0]["blocks"]["0+1"]
    for update in (updates["attention"]["k"], updates["feed_forward"]["up"], updates["feed_forward"]["down"]):
        rows, columns = update.shape[-2:]
        size = PEAK * 0.2 * max(rows, columns) ** 0.5
        values = np.linalg.svd(np.asarray(update, np.float64), compute_uv=False) / size
        assert values.min() > LOWEST and values.max() < HIGHEST
        assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2 * PEAK, rel=0.1)


def test_muons_momentum_is_nesterovs() -> None:
    """Two steps of different gradients, the momentum by hand in float64 (Jordan et al. 2024)."""
    beta, (first, second) = 0.9, np.random.default_rng(0).normal(size=(2, 1, 8, 12))
    rule = scale_by_muon(beta, {"up": Parameter((1, 8, 12), ("layers", "embed", "mlp"), is_matrix=True)}, ONE)
    _, state = rule.update({"up": jnp.asarray(first, jnp.float32)}, rule.init({"up": jnp.zeros((1, 8, 12))}))
    updates, _ = rule.update({"up": jnp.asarray(second, jnp.float32)}, state)
    average = beta * (1 - beta) * first + (1 - beta) * second
    ahead = beta * average + (1 - beta) * second
    expected = 0.2 * 12**0.5 * orthogonalise(jnp.asarray(ahead, jnp.float32))
    found: Any = updates
    np.testing.assert_allclose(found["up"], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 40), (40, 16), (2, 3, 8, 24)])
def test_orthogonalise_is_the_polar_factor(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    rank = min(shape[-2:])
    u, _, vt = np.linalg.svd(draw.normal(size=shape), full_matrices=False)
    singular = np.geomspace(1, 3e-3, rank)  # the band for which the polynomials are the best ones
    found = np.asarray(jax.jit(orthogonalise)(jnp.asarray((u * singular) @ vt, jnp.float32)))
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > LOWEST and values.max() < HIGHEST
    assert np.abs(found - u @ vt).max() < 0.1


def test_orthogonalise_does_not_depend_on_scale_and_keeps_zero() -> None:
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), jnp.float32)
    run = jax.jit(orthogonalise)
    np.testing.assert_allclose(run(matrix * 1e-6), run(matrix), atol=1e-4)
    assert not run(jnp.zeros((8, 12))).any()
