"""Routing as the families publish it, and the layer against one that computes every expert for every token."""

from functools import cache, partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from lifecycle.kernels.activation import gated
from lifecycle.model.config import ModelConfig, MoeConfig
from lifecycle.model.decoder import forward_train
from lifecycle.model.dispatch import Room, Slices, buffer_room, expert_order, round_slices, to_experts, to_tokens
from lifecycle.model.moe import MoE, of_experts
from lifecycle.model.routing import (
    RouterStats,
    balance_loss,
    balanced,
    bias_update,
    expert_load,
    route,
    router_logits,
    router_stats,
    z_loss,
)
from lifecycle.testing.families import random_params
from lifecycle.training.objectives.router import load_metrics

MIXTRAL = MoeConfig(num_experts=8, experts_per_token=2, d_ff=24)
QWEN3 = MoeConfig(num_experts=8, experts_per_token=3, d_ff=24, use_normalised_weights=False)
DEEPSEEK = MoeConfig(
    num_experts=16, experts_per_token=4, d_ff=8, num_shared_experts=2, score="sigmoid", num_groups=4,
    groups_per_token=2, use_selection_bias=True, routed_scale=2.5,
)  # fmt: skip
GPT_OSS = MoeConfig(num_experts=8, experts_per_token=4, d_ff=24, use_bias=True)
FAMILIES = {"mixtral": MIXTRAL, "qwen3": QWEN3, "deepseek": DEEPSEEK, "gpt-oss": GPT_OSS}


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


@cache
def layer(family: str) -> MoE:
    """A layer whose biases are not zero; not to be changed."""
    moe = FAMILIES[family]
    config = ModelConfig(
        vocab_size=96, d_model=16, d_ff=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        activation="clamped" if moe.use_bias else "silu", moe=moe, compute_dtype="float32",
    )  # fmt: skip

    definition, state = nnx.split(nnx.eval_shape(lambda: MoE(config, nnx.Rngs(0))))
    seeds = count()
    return nnx.merge(definition, jax.tree.map(lambda a: 0.25 * draw(*a.shape, seed=next(seeds)), state))


jitted_route = jax.jit(route, static_argnums=0)
jitted_stats = jax.jit(router_stats, static_argnums=0)


@nnx.jit
def outputs(module: MoE, x: jax.Array, is_token: jax.Array | None = None) -> tuple[jax.Array, RouterStats]:
    return module(x, is_token)


# Routing --------------------------------------------------------------------------------------------------------------


def chosen(moe: MoeConfig, logits: np.ndarray, bias: np.ndarray | None) -> dict[int, float]:
    """One token's experts and weights, from the papers' text, in plain Python."""
    e = np.exp(logits.astype(np.float64))
    scores = e / e.sum() if moe.score == "softmax" else e / (1 + e)
    for_choice = scores if bias is None else scores + bias
    per_group = moe.num_experts // moe.num_groups
    groups = for_choice.reshape(moe.num_groups, per_group)
    best = sorted(range(moe.num_groups), key=lambda g: -sum(sorted(groups[g])[-2:]))[: moe.groups_per_token]
    open_to_choice = [i for i in range(moe.num_experts) if i // per_group in best]
    picked = sorted(open_to_choice, key=lambda i: -for_choice[i])[: moe.experts_per_token]
    total = sum(scores[i] for i in picked) if moe.use_normalised_weights else 1.0
    return {i: moe.routed_scale * scores[i] / total for i in picked}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_each_token_goes_where_the_paper_says_with_that_weight(family: str, seed: int) -> None:
    moe, logits = FAMILIES[family], 2 * draw(50, FAMILIES[family].num_experts, seed=seed)
    bias = 0.3 * draw(moe.num_experts, seed=seed + 9) if moe.use_selection_bias else None
    experts, weights = jitted_route(moe, logits, bias)
    for row in range(50):
        wanted = chosen(moe, np.asarray(logits[row]), None if bias is None else np.asarray(bias))
        found = dict(zip(experts[row].tolist(), weights[row].tolist(), strict=True))
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)


def test_softmax_over_the_best_logits_is_the_normalised_softmax_over_all() -> None:
    """gpt-oss's router, word by word, beside the one that all families share."""
    logits = 3 * draw(40, 8)
    experts = np.argsort(-logits, axis=-1)[:, :4]
    found = jitted_route(GPT_OSS, logits, None)
    np.testing.assert_array_equal(found[0], experts)
    np.testing.assert_allclose(found[1], softmax(np.take_along_axis(logits, experts, axis=-1)), rtol=1e-5)


def test_the_selection_bias_chooses_but_does_not_weigh_and_has_no_gradient() -> None:
    moe = DEEPSEEK.model_copy(update={"num_groups": 1, "groups_per_token": 1})
    logits, bias = draw(20, 16), 10.0 * np.eye(16, dtype=np.float32)[3]
    experts, weights = jitted_route(moe, logits, bias)
    assert np.all(experts[:, 0] == 3)
    scores = np.take_along_axis(1 / (1 + np.exp(-logits)), np.asarray(experts), axis=1)
    np.testing.assert_allclose(weights, 2.5 * scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    assert not np.any(jax.jit(jax.grad(lambda bias: (route(moe, logits, bias)[1] ** 2).sum()))(bias))


def test_weights_have_the_gradient_of_what_they_are() -> None:
    logits = draw(6, 8)
    for moe in (MIXTRAL, QWEN3):
        check_grads(lambda logits, m=moe: jitted_route(m, logits, None)[1], (logits,), order=1, modes=["rev"])


def test_a_router_computes_in_float32_whatever_its_input() -> None:
    x, router = draw(9, 16).astype(jnp.bfloat16), draw(16, 8)
    logits = router_logits(x, router, None)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, x.astype(jnp.float32) @ router, rtol=1e-6, atol=1e-6)


# Statistics and losses ------------------------------------------------------------------------------------------------


def test_sums_are_over_tokens_only_and_add_up() -> None:
    logits, is_token = 2 * draw(60, 8), np.arange(60) % 3 > 0
    experts = jitted_route(MIXTRAL, logits, None)[0]
    sums = jitted_stats(MIXTRAL, logits, experts, is_token)
    kept = softmax(logits)[is_token]
    np.testing.assert_array_equal(sums.load, np.bincount(np.asarray(experts)[is_token].ravel(), minlength=8))
    np.testing.assert_allclose(sums.probability, kept.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(sums.entropy, -(kept * np.log(kept)).sum(), rtol=1e-5)
    assert sums.tokens == 40
    halves = (slice(0, 30), slice(30, 60))
    parts = [jitted_stats(MIXTRAL, logits[s], np.asarray(experts)[s], is_token[s]) for s in halves]
    for one, other, both in zip(*parts, sums, strict=True):
        np.testing.assert_allclose(one + other, both, rtol=1e-5)


def test_the_balance_loss_is_least_for_an_even_load() -> None:
    even = balance_loss(jnp.full(8, 20.0), jnp.full(8, 10.0), jnp.float32(80))
    assert even == pytest.approx(MIXTRAL.experts_per_token)
    one = balance_loss(jnp.zeros(8).at[0].set(160.0), jnp.zeros(8).at[0].set(80.0), jnp.float32(80))
    assert one == pytest.approx(16.0)


def test_the_balance_loss_is_the_published_formula_and_a_sum_of_parts() -> None:
    logits = 2 * draw(64, 8)
    experts = jitted_route(MIXTRAL, logits, None)[0]
    probabilities = softmax(logits)
    fraction = np.bincount(np.asarray(experts).ravel(), minlength=8) / 64
    wanted = 8 * (fraction * probabilities.mean(axis=0)).sum()
    whole = jitted_stats(MIXTRAL, logits, experts, np.ones(64, bool))
    assert balance_loss(whole.load, whole.probability, whole.tokens) == pytest.approx(wanted, rel=1e-5)
    parts = (slice(0, 32), slice(32, 64))
    halves = [jitted_stats(MIXTRAL, logits[s], np.asarray(experts)[s], np.ones(32, bool)) for s in parts]
    losses = [balance_loss(whole.load, half.probability, whole.tokens) for half in halves]
    assert sum(losses) == pytest.approx(wanted, rel=1e-5)


def test_the_z_loss_is_the_mean_squared_log_sum_exp() -> None:
    logits = 2 * draw(10, 8)
    sums = jitted_stats(MIXTRAL, logits, jitted_route(MIXTRAL, logits, None)[0], jnp.ones(10, bool))
    wanted = np.mean(np.log(np.exp(logits.astype(np.float64)).sum(axis=1)) ** 2)
    assert z_loss(sums.z, sums.tokens) == pytest.approx(wanted, rel=1e-5)


def test_the_bias_moves_towards_an_even_load_and_evens_it() -> None:
    np.testing.assert_allclose(
        bias_update(jnp.array([[1.0, 2.0, 6.0]]), jnp.array([[0.1, 0.2, 0.3]]), 0.01), [[0.11, 0.21, 0.29]], rtol=1e-6
    )
    moe = DEEPSEEK.model_copy(update={"num_groups": 1, "groups_per_token": 1})
    logits, bias = draw(512, 16) + np.linspace(-1, 1, 16, dtype=np.float32), jnp.zeros(16)
    loads = []
    for _ in range(200):
        loads.append(expert_load(jitted_route(moe, logits, bias)[0], 16))
        bias = bias_update(loads[-1].astype(jnp.float32), bias, 0.005)
    assert loads[0].max() > 2 * 128 and loads[-1].max() < 1.2 * 128


# Dispatch -------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.integers(1, 4).flatmap(
        lambda peers: st.integers(1, 3).flatmap(
            lambda here: st.lists(
                st.lists(st.integers(0, 9), min_size=peers * here, max_size=peers * here),
                min_size=peers, max_size=peers,
            ).map(lambda counts: np.array(counts, np.int32).reshape(peers, peers, here))
        )
    ),
    st.integers(1, 12),
    st.integers(1, 12),
)  # fmt: skip
def test_rounds_move_every_row_once_to_its_expert_and_back(counts: np.ndarray, first: int, further: int) -> None:
    """Plays all devices: rows are (sender, receiver, expert, number); a buffer's rows lie by expert."""
    peers, _, here = counts.shape
    own = [
        [(s, d, e, n) for d in range(peers) for e in range(here) for n in range(counts[s, d, e])] for s in range(peers)
    ]
    arrived: list[list[tuple[int, ...]]] = [[] for _ in range(peers)]
    most = int(counts.sum(axis=(0, 2)).max())
    for low, room in [(0, first), *((low, further) for low in range(first, most, further))]:
        tables = [slices_of(counts, low, room, device) for device in range(peers)]
        buffers: list[dict[int, tuple[int, ...]]] = [{} for _ in range(peers)]
        for s, d, e in np.ndindex(counts.shape):
            sent, got = tables[s], tables[d]
            assert sent.send_sizes[d, e] == got.receive_sizes[s, e]
            for step in range(int(sent.send_sizes[d, e])):
                row, place = int(sent.send_starts[d, e]) + step, int(sent.target_starts[d, e]) + step
                assert place == int(got.receive_starts[s, e]) + step and row == int(got.origin_starts[s, e]) + step
                assert place not in buffers[d]
                buffers[d][place] = own[s][row]
        for device, buffer in enumerate(buffers):
            assert sorted(buffer) == list(range(len(buffer))) and len(buffer) <= room
            assert len(buffer) == int(tables[device].receive_sizes.sum())
            arrived[device] += [buffer[place] for place in sorted(buffer)]
    for device in range(peers):
        assert sorted(arrived[device]) == sorted(row for rows in own for row in rows if row[1] == device)
        assert [row[2] for row in arrived[device]] == sorted(row[2] for row in arrived[device])


@jax.jit
def jitted_slices(counts: jax.Array, low: int, room: int, device: int) -> Slices:
    return round_slices(counts, low, room, device)


def slices_of(counts: np.ndarray, low: int, room: int, device: int) -> Slices:
    return jax.tree.map(np.asarray, jitted_slices(jnp.asarray(counts), low, room, device))


def test_a_buffer_holds_a_quarter_more_than_an_even_load_and_no_more_than_can_come() -> None:
    assert buffer_room(8192, 2, 1, 8) == Room(20480, 4096, 11)
    assert buffer_room(8192, 2, 4, 2) == Room(20480, 4096, 3)
    assert buffer_room(4, 2, 1, 8) == Room(32, 32, 0)


@pytest.mark.parametrize("copies", [1, 3])
def test_sorting_and_summing_are_transposes(copies: int) -> None:
    tokens, seed = 7, copies
    experts = np.random.default_rng(seed).integers(0, 4, (tokens, copies))
    x, y = draw(tokens, 3, seed=seed), draw(tokens * copies, 3, seed=seed + 1)

    @jax.jit
    def both(experts: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        order = expert_order(experts)
        rows, pull = jax.vjp(lambda x: to_experts(x, order, copies), x)
        sums, pull_sums = jax.vjp(lambda y: to_tokens(y, order, copies), y)
        return order.order, rows, pull(y)[0], sums, pull_sums(x)[0]

    order, rows, pulled, sums, pulled_sums = jax.device_get(both(experts, x, y))
    assert np.all(np.diff(experts.ravel()[order]) >= 0)
    np.testing.assert_allclose(np.vdot(rows, y), np.vdot(x, sums), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pulled, sums, rtol=1e-6)
    np.testing.assert_allclose(pulled_sums, rows, rtol=1e-6)


# The layer ------------------------------------------------------------------------------------------------------------


def dense(module: MoE, x: jax.Array) -> jax.Array:
    """Every expert for every token, then the weighted sum."""
    flat, e = x.reshape(-1, x.shape[-1]), module.experts
    assert module.moe is not None

    def value(param: nnx.Param | None) -> jax.Array | float:
        return 0.0 if param is None else param[...][:, None]

    bias = None if module.selection_bias is None else module.selection_bias[...]
    router_bias = None if module.router_bias is None else module.router_bias[...]
    experts, weights = route(module.moe, router_logits(flat, module.router[...], router_bias), bias)
    gate = jnp.einsum("nd,edf->enf", flat, e.gate[...]) + value(e.gate_bias)
    up = jnp.einsum("nd,edf->enf", flat, e.up[...]) + value(e.up_bias)
    outs = jnp.einsum("enf,efd->end", gated(gate, up, module.activation), e.down[...]) + value(e.down_bias)
    mixed = (weights[..., None] * outs.transpose(1, 0, 2)[jnp.arange(len(flat))[:, None], experts]).sum(axis=1)
    out = mixed.reshape(x.shape)
    return out if module.shared is None else out + module.shared(x)


def value_and_gradients(module: MoE, function: Any, x: np.ndarray, pull: np.ndarray) -> Any:
    definition, state = nnx.split(module)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def pulled(state: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = function(nnx.merge(definition, state), x)
        return (out * pull).sum(), out

    return pulled(state, x)


def assert_close(found: Any, wanted: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize(
    "family", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "qwen3", "gpt-oss")), "deepseek"]
)
def test_the_layer_is_the_dense_reference_with_its_gradients(family: str) -> None:
    module, x, pull = layer(family), draw(2, 23, 16), draw(2, 23, 16, seed=1)
    found = value_and_gradients(module, lambda m, x: m(x)[0], x, pull)
    assert_close(found, value_and_gradients(module, dense, x, pull))


def test_a_layer_says_what_its_router_did() -> None:
    sums = outputs(layer("mixtral"), draw(2, 23, 16))[1]
    assert sums.load.sum() == 2 * 46 and sums.tokens == 46 and sums.dropped == 0
    assert sums.probability.sum() == pytest.approx(46, rel=1e-5)
    assert 0 < sums.entropy < 46 * np.log(8)


@jax.jit
def mixtral_layer(x: jax.Array) -> jax.Array:
    return layer("mixtral")(x)[0]


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_tokens_do_not_see_each_other(order: list[int]) -> None:
    x, places = draw(1, 12, 16), np.array(order)
    np.testing.assert_allclose(mixtral_layer(x[:, places]), mixtral_layer(x)[:, places], rtol=1e-5, atol=1e-6)


def test_all_tokens_to_the_same_experts_and_none_to_the_others() -> None:
    module, x = layer("mixtral"), draw(1, 1, 16).repeat(3, 0).repeat(11, 1)
    out, sums = outputs(module, x)
    assert sorted(np.asarray(sums.load).tolist()) == [0.0] * 6 + [33.0] * 2
    (grads, _), again = value_and_gradients(module, lambda m, x: m(x)[0], x, np.ones_like(x))
    assert_close((out, again), [nnx.jit(dense)(module, x)] * 2)
    grads = grads["experts"]["gate"][...]
    used = np.asarray(sums.load) > 0
    assert np.all(np.any(np.asarray(grads), axis=(1, 2)) == used)


def test_padding_costs_nothing_and_gets_what_every_token_gets_besides() -> None:
    module, x = layer("deepseek"), draw(2, 20, 16)
    is_token: Any = np.arange(20) < np.array([[15], [7]])
    out, sums = jax.device_get(outputs(module, x, is_token))
    assert sums.load.sum() == 4 * 22 and sums.tokens == 22
    every, _ = jax.device_get(outputs(module, x, is_token | True))
    assert_close(out[is_token], every[is_token])
    assert module.shared is not None
    assert_close(out[~is_token], np.asarray(nnx.jit(module.shared)(x))[~is_token])


def test_clamped_experts_are_gpt_oss_s() -> None:
    """Its activation by hand, for numbers on both sides of the clamps."""
    gate, up = jnp.array([-9.0, 3.0, 9.0, 7.5]), jnp.array([-9.0, 2.0, 9.0, -7.5])
    low, high = np.minimum(np.asarray(gate), 7.0), np.clip(np.asarray(up), -7.0, 7.0)
    np.testing.assert_allclose(gated(gate, up, "clamped"), low / (1 + np.exp(-1.702 * low)) * (high + 1), rtol=1e-5)


def test_bfloat16_stays_bfloat16_and_near_float32() -> None:
    module, x = layer("mixtral"), draw(2, 23, 16)
    definition, state = nnx.split(module)
    half = nnx.merge(definition, jax.tree.map(lambda array: array.astype(jnp.bfloat16), state))
    half.router = nnx.Param(module.router[...])
    x = x.astype(jnp.bfloat16)
    out = np.asarray(outputs(half, x)[0])
    assert out.dtype == jnp.bfloat16
    exact = outputs(module, x.astype(np.float32))[0]
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=0.05, atol=0.05)


def test_a_decoder_routes_no_padding() -> None:
    """Segment 0 is padding: the routers of all layers count the tokens of the other segments only."""
    config = ModelConfig(
        vocab_size=32, d_model=16, d_ff=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8,
        moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=8),
    )  # fmt: skip
    segments = np.array([[1, 1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    positions = np.broadcast_to(np.arange(8), segments.shape)
    params = random_params(config)
    _, found = jax.jit(forward_train, static_argnums=0)(config, params, positions, positions, segments)
    (sums,) = found.values()
    assert sums.tokens.tolist() == [13, 13]
    assert sums.load.sum(axis=-1).tolist() == [26, 26]


def test_the_load_of_a_step_is_told_by_its_worst_layer() -> None:
    even, uneven, idle = [[3.0, 3, 3, 3]], [[1.0, 1, 4, 2], [2, 2, 2, 2]], [[8.0, 0, 0, 0]]
    load = {"0+1": jnp.array(uneven), "2+1": jnp.array(even)}
    found = {name: float(value) for name, value in load_metrics(load).items()}
    assert found == {"expert_load_max": 2.0, "expert_load_min": 0.5, "experts_idle": 0.0}
    found = {name: float(value) for name, value in load_metrics(load | {"mtp": jnp.array(idle)}).items()}
    assert found == {"expert_load_max": 4.0, "expert_load_min": 0.0, "experts_idle": 3.0}
    assert load_metrics({}) == {}


def test_only_the_selection_biases_follow_the_load() -> None:
    """Behind a dense layer, two layers of experts in one stack; at a rate of zero nothing moves."""
    moe = MoeConfig(num_experts=4, experts_per_token=2, d_ff=8, first_dense_layers=1, use_selection_bias=True)
    config = ModelConfig(
        vocab_size=32, d_model=16, d_ff=32, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=8, moe=moe
    )
    params, load = random_params(config), {"1+1": jnp.array([[9.0, 1, 1, 1], [0, 4, 4, 4]])}
    after = balanced(params, load, 0.5)
    bias, before = (tree["blocks"]["1+1"]["feed_forward"].pop("selection_bias") for tree in (after, params))
    np.testing.assert_allclose(bias - before, [[-0.5, 0.5, 0.5, 0.5], [0.5, -0.5, -0.5, -0.5]], rtol=1e-6)
    of_module = {"block": {"feed_forward": {"selection_bias": jnp.zeros((1, 4))}}}
    moved = balanced({"mtp": {"0+1": of_module}}, {"mtp": load["1+1"][:1]}, 0.5)["mtp"]["0+1"]
    assert moved["block"]["feed_forward"]["selection_bias"].tolist() == [[-0.5, 0.5, 0.5, 0.5]]
    assert balanced(params, load, 0.0) is params
    assert jax.tree.all(jax.tree.map(lambda one, other: one is other, after, params))


@pytest.mark.parametrize("has_bias", [False, True])
def test_rows_behind_the_last_group_reach_no_gradient_of_the_weights(has_bias: bool) -> None:
    """What an exchange leaves there is whatever was in memory."""
    sizes: Any = np.array([5, 0, 6])
    shapes = {"gate": (3, 8, 16), "up": (3, 8, 16), "down": (3, 16, 8)}
    shapes |= {"gate_bias": (3, 16), "up_bias": (3, 16)} if has_bias else {}
    weights = {name: draw(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}
    rows, row_weights = draw(16, 8, seed=8), np.random.default_rng(9).random(16, np.float32)

    @jax.jit
    @jax.grad
    def gradient(weights: dict[str, jax.Array], rows: jax.Array, row_weights: jax.Array) -> jax.Array:
        return of_experts("silu", rows, row_weights, weights, sizes, is_filled=False)[:11].sum()

    def gradients(behind: float) -> dict[str, jax.Array]:
        rows[11:], row_weights[11:] = behind, behind
        return gradient(weights, rows.copy(), row_weights.copy())

    found, wanted = gradients(float("nan")), gradients(0.0)
    for name, grad in found.items():
        np.testing.assert_array_equal(grad, wanted[name], err_msg=name)
