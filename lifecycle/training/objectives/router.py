"""What a mixture of experts adds to an objective: losses that keep its routers in order, and what is logged of them."""

from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.model.config import ModelConfig, MoeConfig
from lifecycle.model.routing import RouterStats, balance_loss, z_loss
from lifecycle.parallel.collectives import axis_size, psum_identity_grad

LOAD = "expert_load"  # the key of the choices of each expert, `[layers, E]` by stack: what the selection bias follows

type Sums = tuple[Array, Array, dict[str, Any]]  # the loss, what it divides by, and what is logged or followed


def with_routers(config: ModelConfig, sums: Sums, found: dict[str, RouterStats]) -> Sums:
    """An objective's sums with the routers' terms; `found` is what `forward_train` says of them, by stack.

    Losses are means over the layers and over the tokens of all devices, in units of the objective's count. Logged:
    `router_balance`, `router_z`, `router_entropy` (nats), `router_max_load` (of the busiest expert, in units of an even
    load), `router_dropped` (share of the choices that were not computed).
    """
    if config.moe is None:
        return sums
    loss, count, aux = sums
    layers = [_terms(config.moe, stack) for stack in found.values()]
    num = sum(term["router_z"].shape[0] for term in layers)
    everywhere = _over_devices(count)
    means = {name: sum(term[name].sum() for term in layers) / num * everywhere for name in layers[0]}
    loss += config.moe.balance_weight * means["router_balance"] + config.moe.z_weight * means["router_z"]
    logged = jax.lax.stop_gradient(means)
    return loss, count, aux | logged | {LOAD: {stack: sums.load for stack, sums in found.items()}}


def _over_devices(x: Array) -> Array:
    return psum_identity_grad(psum_identity_grad(psum_identity_grad(x, "batch"), "seq"), "layers")


def _terms(moe: MoeConfig, found: RouterStats) -> dict[str, Array]:
    """This device's part of each mean, `[layers]`."""
    load, tokens = _over_devices(found.load), jnp.maximum(_over_devices(found.tokens), 1)
    even = moe.experts_per_token * tokens / moe.num_experts
    return {
        "router_balance": balance_loss(load, found.probability, tokens),
        "router_z": z_loss(found.z, tokens),
        "router_entropy": found.entropy / tokens,
        "router_max_load": load.max(axis=-1) / even / (axis_size("batch") * axis_size("seq") * axis_size("layers")),
        "router_dropped": found.dropped / (moe.experts_per_token * tokens),
    }
