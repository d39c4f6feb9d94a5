"""What is computed again in the backward pass, whatever the policy."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.model.layers import RMSNorm
from lifecycle.model.remat import rematerialised
from tests.planning.shipped import load


def primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all equations, also of those inside others."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_a_norms_mean_squares_are_not_summed_again() -> None:
    graph, state = nnx.split(RMSNorm(8, load("debug").model))

    def layer(x: jax.Array) -> jax.Array:
        return jnp.exp(nnx.merge(graph, state)(x))

    def counts(of: Any) -> tuple[int, int]:
        gradient = jax.make_jaxpr(jax.grad(lambda x: of(x).sum()))(jnp.ones((3, 8)))
        names = list(primitives(gradient.jaxpr))
        return names.count("reduce_sum"), names.count("rsqrt")

    (kept_sums, kept_roots), (sums_again, roots_again) = counts(layer), counts(rematerialised(layer, {}))
    assert sums_again == kept_sums
    assert roots_again == kept_roots + 1  # the rest is computed again, so the policy is in force
