"""Schedules at their corners, clipping, weight decay, and Muon against the singular value decomposition."""

from functools import partial, reduce
from operator import getitem
from re import sub
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import abstract_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.adafactor import scale_by_adafactor
from lifecycle.training.average import average_of, with_average
from lifecycle.training.muon import orthogonalise, scale_by_muon
from lifecycle.training.optimizer import build_optimizer, build_schedule
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.weights.names import unstack

PEAK = 2e-3
ONE = build_mesh(MeshConfig())
LOWEST, HIGHEST = 0.81, 1.13  # singular values of what five quintic polynomials make of those above 1e-3


def rates(steps: int, /, **schedule: Any) -> np.ndarray:
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


RUNS = st.tuples(st.integers(1, 12), st.sampled_from(["wsd", "cosine", "constant"]), st.floats(0, 1))


@given(st.integers(0, 4), RUNS, RUNS)
def test_runs_of_any_length_share_their_stable_steps(
    warmup: int, one: tuple[int, Any, float], other: tuple[int, Any, float]
) -> None:
    runs = [(n, ScheduleConfig(warmup_steps=warmup, kind=kind, decay_share=share)) for n, kind, share in (one, other)]
    shared = min(schedule.stable_steps(length) for length, schedule in runs)
    first, second = (rates(length, **schedule.plain())[:shared] for length, schedule in runs)
    assert (first == second).all() and (shared > 0 or min(one[0], other[0]) <= warmup)
    for length, schedule in runs:
        after = rates(length, **schedule.plain())[schedule.stable_steps(length) : length]
        assert length <= warmup or (after < np.float32(PEAK)).all()


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return jax.device_get(random_params(MODEL))


def first_update(params: dict[str, Any], grads: dict[str, Any], **settings: Any) -> tuple[dict[str, Any], Any]:
    config = OptimizerConfig(learning_rate=PEAK, schedule=ScheduleConfig(kind="constant"), **settings)
    optimizer = build_optimizer(config, MODEL, 10, ONE)
    return jax.device_get(jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, grads))


def random_like(params: dict[str, Any], size: float = 1.0) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: (draw.normal(size=x.shape) * size).astype(np.float32), params)


def find_all(state: Any, name: str) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, name))
    return [getattr(node, name) for node in nodes if hasattr(node, name)]


def test_gradients_are_clipped_by_their_global_norm(params: dict[str, Any]) -> None:
    grads = random_like(params)
    norm = float(np.sqrt(sum((grad**2).sum() for grad in jax.tree.leaves(grads))))
    for clip, scale in ((0.5, 0.5 / norm), (2 * norm, 1.0)):
        (moment,) = find_all(first_update(params, grads, clip_norm=clip)[1], "mu")
        np.testing.assert_allclose(moment["embed"], 0.1 * scale * grads["embed"], rtol=1e-4, atol=1e-9)


def test_adamw_is_optax_adamw(params: dict[str, Any]) -> None:
    grads = random_like(params, 1e-3)
    found = first_update(params, grads, weight_decay=0.1, clip_norm=1e9)[0]
    other = optax.adamw(PEAK, 0.9, 0.95, eps=1e-10, weight_decay=0.1)
    exact: Any = jax.jit(lambda p, g: other.update(g, other.init(p), p)[0])(params, grads)
    for name in ("embed", "head"):
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-5, atol=1e-9)
    found, exact = found["blocks"]["0+1"], exact["blocks"]["0+1"]
    np.testing.assert_allclose(found["attention"]["q"], exact["attention"]["q"], rtol=1e-5, atol=1e-9)


def test_adafactor_is_optax_adafactor_layer_by_layer() -> None:
    """Two steps, the second with gradients so small that no update is clipped; optax gets each layer alone."""
    declared = {
        "embed": Parameter((5, 4), ("vocab", "embed"), is_matrix=True),
        "blocks": {
            "0+1": {
                "up": Parameter((2, 4, 6), ("layers", "embed", "mlp"), is_matrix=True),
                "scale": Parameter((2, 4), ("layers", None), is_matrix=False),
            }
        },
    }
    rule = scale_by_adafactor(declared)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
    other = optax.chain(factored, optax.clip_by_block_rms(1.0))  # of `optax.adafactor`, without the parameters' scale
    draw = np.random.default_rng(0)
    first, second = (
        jax.tree.map(lambda p, scale=scale: jnp.asarray(draw.normal(size=p.shape) * scale, jnp.float32), declared)
        for scale in (1.0, 0.1)
    )

    def two_steps(rule: optax.GradientTransformation, first: Any, second: Any) -> Any:
        updates, state = rule.update(first, rule.init(first), first)
        return updates, rule.update(second, state, first)[0]

    ours = jax.jit(partial(two_steps, rule))(first, second)
    theirs = jax.jit(partial(two_steps, other))(unstack(first), unstack(second))
    for found, expected in zip(ours, theirs, strict=True):
        for name, update in unstack(found).items():
            np.testing.assert_allclose(update, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_adafactors_state_is_a_row_and_a_column_per_matrix() -> None:
    optimizer = build_optimizer(OptimizerConfig(name="adafactor"), MODEL, 10, ONE)
    shapes = jax.eval_shape(optimizer.init, abstract_params(MODEL))
    (rows,), (columns,) = (find_all(shapes, name) for name in ("rows", "columns"))
    up, layers = ("blocks", "0+1", "feed_forward", "up"), MODEL.num_layers
    assert reduce(getitem, up, rows).shape == (layers, MODEL.d_model, 1)
    assert reduce(getitem, up, columns).shape == (layers, 1, MODEL.d_ff)
    assert rows["embed"].shape == (MODEL.vocab_size, 1) and rows["norm"]["scale"].shape == (MODEL.d_model,)


def test_the_average_of_the_weights_is_tensorflows() -> None:
    """Three steps of SGD by hand: `decay` is reached from `(1 + step) / (10 + step)` below."""
    rule = with_average(optax.sgd(0.5), 0.15)
    grads = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def three_steps(grads: jax.Array) -> Any:
        params: Any = jnp.ones(4)
        states = [rule.init(params)]
        for grad in grads:
            updates, state = rule.update(grad, states[-1], params)
            params, states = optax.apply_updates(params, updates), [*states, state]
        return [average_of(state) for state in states]

    weights, average = np.ones(4), np.ones(4)
    for number, (grad, found) in enumerate(zip(grads, jax.jit(three_steps)(grads)[1:], strict=True)):
        weights = weights - 0.5 * grad
        kept = min(0.15, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * weights
        np.testing.assert_allclose(found, average, rtol=1e-6)


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_a_plan_counts_the_optimizers_state(name: Any, average_decay: float) -> None:
    config = OptimizerConfig(name=name, average_decay=average_decay)
    sizes = abstract_params(MODEL), jax.eval_shape(build_optimizer(config, MODEL, 10, ONE).init, abstract_params(MODEL))
    parameters, state = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in sizes)
    few = 0.12 * parameters  # Adafactor's rows and columns of matrices of 32 x 64
    values = config.bytes_per_parameter // 4 - 1
    lowest = 1 + (average_decay > 0) if name == "muon" else values
    assert lowest * parameters <= state < values * parameters + few


def test_a_rate_that_names_no_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.rates: 'emebd' .*'embed'"):
        build_optimizer(OptimizerConfig(rates={"emebd": 2.0}), MODEL, 10, ONE)


RATES = {"blocks": 3.0, "blocks.*.attention": 0.5, "head": 0.0}


@pytest.mark.parametrize(("name", "rates"), [("adamw", {}), ("muon", {}), ("adafactor", RATES)])
def test_weight_decay_shrinks_all_but_scales(params: dict[str, Any], name: str, rates: dict[str, float]) -> None:
    """By the learning rate times the parameter's own rate, that of the last pattern which matches it."""
    zero = jax.tree.map(np.zeros_like, params)
    updates = first_update(params, zero, name=name, weight_decay=0.5, rates=rates)[0]
    for path, update in unstack(updates).items():
        matched = [rate for pattern, rate in rates.items() if pattern.replace("*.", "") in sub(r"[0-9]+\.", "", path)]
        decay = 0.0 if path.endswith("scale") else 0.5 * [1.0, *matched][-1]
        np.testing.assert_allclose(update, -PEAK * decay * unstack(params)[path], rtol=1e-5, atol=1e-12)


def test_muon_takes_the_layers_matrices_and_adam_all_else(params: dict[str, Any]) -> None:
    updates, state = first_update(params, random_like(params), name="muon")
    (momentum,), (second,) = find_all(state, "momentum"), find_all(state, "nu")
    held = {name: {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(tree) if hasattr(x, "shape")}
            for name, tree in (("muon", momentum), ("adam", second))}  # fmt: skip
    everything = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert held["muon"] | held["adam"] == everything and not held["muon"] & held["adam"]
    assert held["muon"] == {n for n in everything if "blocks" in n and "scale" not in n}
    np.testing.assert_allclose(np.abs(updates["embed"]), PEAK, rtol=1e-3)  # Adam's first update is the sign


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
    beta, (first, second) = 0.9, np.random.default_rng(0).normal(size=(2, 1, 8, 12)).astype(np.float32)
    rule = scale_by_muon(beta, {"up": Parameter((1, 8, 12), ("layers", "embed", "mlp"), is_matrix=True)}, ONE)
    update = jax.jit(rule.update)
    _, state = update({"up": first}, rule.init({"up": jnp.zeros((1, 8, 12))}))
    updates, _ = update({"up": second}, state)
    average = beta * (1 - beta) * first + (1 - beta) * second
    ahead = beta * average + (1 - beta) * second
    expected = 0.2 * 12**0.5 * np.asarray(jax.jit(orthogonalise)(ahead))
    found: Any = updates
    np.testing.assert_allclose(found["up"], expected, atol=1e-5)


def test_neurons_are_scaled_by_their_mean_squares() -> None:
    """NorMuon's algorithm 1 (Li et al. 2025) in float64, without momentum: its rows, the output neurons, are our
    columns. Two steps, the second of a gradient whose neurons differ a thousandfold, one of them without any."""
    beta, gradients = 0.75, np.random.default_rng(0).normal(size=(2, 1, 8, 12)).astype(np.float32)
    gradients[1] *= np.geomspace(1e-3, 1, 12, dtype=np.float32)
    gradients[1, :, :, 5] = 0
    rule = scale_by_muon(0.0, {"up": Parameter((1, 8, 12), ("layers", "embed", "mlp"), is_matrix=True)}, ONE, beta)
    state: Any = rule.init({"up": jnp.zeros((1, 8, 12))})
    update, polar = jax.jit(rule.update), jax.jit(orthogonalise)
    squares, found = np.zeros((1, 1, 12)), np.zeros((1, 8, 12))
    for gradient in gradients:
        updates, state = update({"up": gradient}, state)
        found = np.asarray(updates["up"])
        whole = np.asarray(polar(gradient), np.float64)
        squares = beta * squares + (1 - beta) * np.mean(whole**2, axis=-2, keepdims=True)
        scaled = whole / np.sqrt(squares)
        np.testing.assert_allclose(found, 0.2 * np.sqrt(8 * 12) * scaled / np.linalg.norm(scaled), atol=1e-5)
    assert not found[..., 5].any()
    with pytest.raises(ValueError, match=r"neuron_beta2=0\.9 is a setting of muon, not of adamw; set name=muon"):
        OptimizerConfig(neuron_beta2=0.9)


@pytest.mark.parametrize(("name", "unused"), [("adamw", ["momentum"]), ("adafactor", ["beta1", "beta2", "momentum"])])
def test_a_setting_that_an_optimizer_has_no_use_for_is_refused(name: str, unused: list[str]) -> None:
    for setting in ("beta1", "beta2", "momentum"):
        if setting in unused:
            with pytest.raises(ValueError, match=rf"{setting}=0\.5 is a setting of .*muon, not of {name}; set name="):
                OptimizerConfig.model_validate({"name": name, setting: 0.5})
        else:
            assert OptimizerConfig.model_validate({"name": name, setting: 0.5})


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
