"""Routing: each token's experts and their weights, and the routers' statistics and losses.

One function covers the routers of the open families: Mixtral and Qwen3-MoE (softmax over all experts, the best k,
normalised or not), gpt-oss (softmax over the best k's logits, which equals the former normalised), DeepSeek-V3 (sigmoid
scores, a bias for the choice only, choice among the best groups). All of it is in float32: a rounded logit changes the
choice, and with it the output.

Statistics are sums over tokens, so that they can be added over devices and micro-batches before any division.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int, PyTree
from lifecycle.model.config import MoeConfig
from lifecycle.model.stacks import MODULES, MODULES_STACK
from lifecycle.parallel.collectives import reduce_scatter


class RouterStats(NamedTuple):
    """A layer's router statistics: float32 sums over the tokens that it saw. `load` has no gradient, `probability` and
    `z` do."""

    dropped: Float[Array, "*layers"]  # choices of experts that were not computed; summed over all devices it is 0
    entropy: Float[Array, "*layers"]  # of the probabilities, in nats
    load: Float[Array, "*layers E"]  # choices of each expert
    probability: Float[Array, "*layers E"]  # softmax of the logits, or sigmoids divided by their sum
    tokens: Float[Array, "*layers"]  # number of tokens
    z: Float[Array, "*layers"]  # squared log-sum-exp of the logits


def router_logits(
    x: Float[Array, "N D"], router: Float[Array, "D E"], bias: Float[Array, " E"] | None
) -> Float[Array, "_ E"]:
    """The router's product in float32; on TPUs in three bfloat16 passes, which keep 16 bits of the factors. Of hidden
    states that are cut the rows are all devices', and the logits of this device's."""
    logits = jnp.dot(x.astype(jnp.float32), router.astype(jnp.float32), precision=jax.lax.Precision.HIGH)
    logits = reduce_scatter(logits, "hidden", 0)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def route(
    moe: MoeConfig, logits: Float[Array, "N E"], selection_bias: Float[Array, " E"] | None
) -> tuple[Int[Array, "N k"], Float[Array, "N k"]]:
    """Each token's experts, best first, and their weights (DeepSeek-V3, equations 12 to 16)."""
    scores = jax.nn.softmax(logits) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    for_choice = jax.lax.stop_gradient(scores)
    if selection_bias is not None:
        for_choice += jax.lax.stop_gradient(selection_bias)
    if moe.num_groups > 1:
        for_choice = _in_best_groups(moe, for_choice)
    experts = jax.lax.top_k(for_choice, moe.experts_per_token)[1]
    weights = _at(scores, experts)
    if moe.use_normalised_weights:
        weights /= weights.sum(axis=-1, keepdims=True) + 1e-20  # DeepSeek's; sigmoids may all be zero
    return experts, weights * moe.routed_scale


def _in_best_groups(moe: MoeConfig, scores: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """The scores, minus infinity outside the best groups: those whose two best experts have the largest sum of
    scores."""
    grouped = scores.reshape(-1, moe.num_groups, moe.num_experts // moe.num_groups)
    group_scores = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(axis=-1)
    best = jax.lax.top_k(group_scores, moe.groups_per_token)[1]
    is_best = (best[..., None] == jnp.arange(moe.num_groups)).any(axis=1)
    return jnp.where(is_best[..., None], grouped, -jnp.inf).reshape(scores.shape)


def _at(scores: Float[Array, "N E"], experts: Int[Array, "N k"]) -> Float[Array, "N k"]:
    """`scores[i, experts[i]]` as a sum of products, whose gradient needs no scatter."""
    is_chosen = experts[..., None] == jnp.arange(scores.shape[-1])
    return jnp.where(is_chosen, scores[:, None, :], 0.0).sum(axis=-1)


def expert_load(experts: Int[Array, "*rows"], num_experts: int) -> Int[Array, " E"]:
    """The number of choices of each expert; an id that is not an expert's is not counted."""
    return (experts.reshape(-1, 1) == jnp.arange(num_experts)).sum(axis=0, dtype=jnp.int32)


def router_stats(
    moe: MoeConfig, logits: Float[Array, "N E"], experts: Int[Array, "N k"], is_token: Bool[Array, " N"]
) -> RouterStats:
    """A router's statistics over the tokens of `is_token`; `dropped` is 0 here."""
    scores = jax.nn.softmax(logits) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    probabilities = scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
    entropies = jax.lax.stop_gradient(jax.scipy.special.entr(probabilities).sum(axis=-1))
    load = expert_load(jnp.where(is_token[:, None], experts, moe.num_experts), moe.num_experts)
    return RouterStats(
        load=load.astype(jnp.float32),
        probability=jnp.where(is_token[:, None], probabilities, 0.0).sum(axis=0),
        z=jnp.where(is_token, jax.nn.logsumexp(logits, axis=-1) ** 2, 0.0).sum(),
        entropy=jnp.where(is_token, entropies, 0.0).sum(),
        tokens=is_token.sum(dtype=jnp.float32),
        dropped=jnp.float32(0),
    )


def balance_loss(
    load: Float[Array, "*layers E"], probability: Float[Array, "*layers E"], tokens: Float[Array, "*layers"]
) -> Float[Array, "*layers"]:
    """The load-balancing loss of each layer: `E sum_e (load_e / tokens) (probability_e / tokens)` (Fedus et al. 2021,
    "Switch Transformers", equation 4); an even load gives `experts_per_token`.

    It is linear in `probability`: with `load` and `tokens` summed over all devices and this device's `probability`, it
    is this device's part of the loss. `load` has no gradient.
    """
    shares = jax.lax.stop_gradient(load / tokens[..., None])
    return load.shape[-1] * (shares * probability).sum(axis=-1) / tokens


def z_loss(z: Float[Array, "*layers"], tokens: Float[Array, "*layers"]) -> Float[Array, "*layers"]:
    """The mean squared log-sum-exp of a router's logits (Zoph et al. 2022, "ST-MoE", equation 5); linear in `z`."""
    return z / tokens


def bias_update(
    load: Float[Array, "*layers E"], bias: Float[Array, "*layers E"], rate: float
) -> Float[Array, "*layers E"]:
    """The selection bias after a step in which the experts had `load` choices, summed over all devices and
    micro-batches: an expert above the mean loses `rate`, one below gains it (DeepSeek-V3, section 2.1.2)."""
    return bias + rate * jnp.sign(load.mean(axis=-1, keepdims=True) - load)


def balanced(params: PyTree, load: dict[str, Float[Array, "L E"]], rate: float) -> PyTree:
    """A model's parameters with every router's selection bias updated from the `load` of its experts, given by
    stack."""
    if not rate:
        return params
    for stack, choices in load.items():
        layer = (MODULES, MODULES_STACK, "block") if stack == MODULES else ("blocks", stack)
        path = (*layer, "feed_forward", "selection_bias")
        params = _changed(params, path, partial(bias_update, choices, rate=rate))
    return params


def _changed(tree: PyTree, path: tuple[str, ...], change: Callable[[Array], Array]) -> PyTree:
    """The tree with the array at `path` changed."""
    return tree | {path[0]: _changed(tree[path[0]], path[1:], change)} if path else change(tree)
