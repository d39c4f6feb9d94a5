"""The terms that a mixture of experts adds to an objective: its routers' losses and metrics; and its load in a step."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.model.config import ModelConfig, MoeConfig
from lifecycle.model.routing import RouterStats, balance_loss, z_loss
from lifecycle.parallel.collectives import axis_size, psum_identity_grad
from lifecycle.training.objectives.sums import Sums


def with_routers(config: ModelConfig, sums: Sums, routers: dict[str, RouterStats]) -> Sums:
    """An objective's sums plus the terms of `routers`, the statistics by stack from `forward_train`.

    Losses are means over the layers and over the tokens of all devices, in units of the objective's count. Logged:
    `router_balance`, `router_z`, `router_entropy` (nats), `router_max_load` (of the busiest expert, in units of an even
    load), `router_dropped` (the share of choices that were dropped).
    """
    if config.moe is None:
        return sums
    layers = [_terms(config.moe, stack) for stack in routers.values()]
    num = sum(term["router_z"].shape[0] for term in layers)
    everywhere = _over_devices(sums.count)
    means = {name: sum(term[name].sum() for term in layers) / num * everywhere for name in layers[0]}
    loss = sums.loss + (config.moe.balance_weight * means["router_balance"] + config.moe.z_weight * means["router_z"])
    logged = jax.lax.stop_gradient(means)
    load = {name: stack.load for name, stack in routers.items()}
    return replace(sums, loss=loss, load=load, metrics=sums.metrics | logged)


def load_metrics(load: dict[str, Float[Array, "L E"]]) -> dict[str, Array]:
    """How even the experts' load was in a step, from the number of choices of each expert in all of its micro-batches.

    Of all layers the worst: `expert_load_max` of its busiest expert and `expert_load_min` of its idlest, in units of an
    even load; `experts_idle`: how many experts, of all layers together, no token chose. Empty without experts.
    """
    if not load:
        return {}
    shares = [stack / jnp.maximum(stack.mean(axis=-1, keepdims=True), 1e-9) for stack in load.values()]
    worst = jnp.stack([share.max() for share in shares]).max(), jnp.stack([share.min() for share in shares]).min()
    idle = sum((stack == 0).sum(dtype=jnp.float32) for stack in load.values())
    return {"expert_load_max": worst[0], "expert_load_min": worst[1], "experts_idle": jnp.asarray(idle)}


def _over_devices(x: Array) -> Array:
    return psum_identity_grad(psum_identity_grad(psum_identity_grad(x, "batch"), "seq"), "layers")


def _terms(moe: MoeConfig, stack: RouterStats) -> dict[str, Array]:
    """This device's part of each mean, `[layers]`."""
    load, tokens = _over_devices(stack.load), jnp.maximum(_over_devices(stack.tokens), 1)
    even = moe.experts_per_token * tokens / moe.num_experts
    return {
        "router_balance": balance_loss(load, stack.probability, tokens),
        "router_z": z_loss(stack.z, tokens),
        "router_entropy": stack.entropy / tokens,
        "router_max_load": load.max(axis=-1) / even / (axis_size("batch") * axis_size("seq") * axis_size("layers")),
        "router_dropped": stack.dropped / (moe.experts_per_token * tokens),
    }
