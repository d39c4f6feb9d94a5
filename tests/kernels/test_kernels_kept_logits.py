"""Log-probabilities among a few ids in blocks against the plain formula on full logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.kernels import kept_logits
from lifecycle.kernels.kept_logits import kept_logprobs
from lifecycle.kernels.logits import soft_capped

B, T, D, V, KEPT = 3, 13, 8, 40, 5


def inputs() -> tuple[Array, Array, Array, Array, Array]:
    """Hidden states, head, targets, ids that have the target at any place, fewer in some rows and none in others, and
    weights of a sum."""
    draw = np.random.default_rng(0)
    kept = draw.permuted(np.tile(np.arange(V), (B, T, 1)), axis=2)[..., :KEPT]
    targets = np.take_along_axis(kept, draw.integers(0, KEPT, (B, T, 1)), axis=2)[..., 0]
    is_less = (np.arange(T) % 3 == 1)[:, None] & (kept != targets[..., None]) & (np.arange(KEPT) > 1)
    kept = np.where(is_less, -1, kept)
    kept[:, 5] = -1
    hidden, head, weights = (draw.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (V, D), (B, T)))
    return jnp.array(hidden), jnp.array(head), jnp.array(targets), jnp.array(kept), jnp.array(weights)


def plain(hidden: Array, head: Array, soft_cap: float | None, temperature: float) -> Array:
    _, _, targets, kept, _ = inputs()
    logits = soft_capped(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"), soft_cap) / temperature
    is_kept = (kept[..., None] == jnp.arange(V)).any(2)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    total = jnp.where(is_kept, jnp.exp(logits), 0).sum(-1)
    return jnp.where(total > 0, chosen - jnp.log(jnp.where(total > 0, total, 1)), 0)


@pytest.mark.parametrize(
    ("soft_cap", "temperature", "chunks", "picked"), [(None, 1.0, 1, 2**24), (2.0, 0.7, 5, 400), (None, 1.3, 4, 1)]
)
def test_they_and_their_gradients_are_the_plain_ones(
    soft_cap: float | None, temperature: float, chunks: int, picked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_logits, "MOST_PICKED", picked)
    hidden, head, targets, kept, weights = inputs()

    def everything(function: Callable[[Array, Array], Array]) -> list[Array]:
        def loss(hidden: Array, head: Array) -> tuple[Array, Array]:
            found = function(hidden, head)
            return (weights * found).sum(), found

        (_, found), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, head)
        return [found, *grads]

    ours = everything(lambda h, w: kept_logprobs(h, w, targets, kept, soft_cap, chunks, temperature))
    theirs = everything(lambda h, w: plain(h, w, soft_cap, temperature))
    for found, exact in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, exact, atol=3e-5, rtol=1e-5)
    assert not np.asarray(ours[0])[:, 5].any() and np.asarray(ours[0])[:, :5].all()
