"""Sums over the last axis whose bits do not depend on how many rows there are.

On CPUs XLA leaves the order of a row's sum to LLVM, which vectorises over rows where there are several, and so sums one
of one row and one of five in different orders. Decoding feeds one token of a request or several, with drafts behind it,
and must find the same numbers. Additions of halves have an order of their own.
"""

import jax

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float

MANY = 4096  # so many rows are never decoded; training has no use for the order, and one pass less over its activations
LANES = 32  # below, halves are added after a pass of their own, or LLVM would make one loop of both


def row_sum(x: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """`x.sum(-1)`; of few rows on a CPU by adding halves."""
    if platform() != "cpu" or x.size >= MANY * x.shape[-1]:
        return x.sum(-1)
    lanes = jax.lax.optimization_barrier(_halved(x, LANES))
    parts = _halved(lanes, 1)
    return sum((parts[..., place] for place in range(1, parts.shape[-1])), parts[..., 0])


def _halved(x: Float[Array, "*rows D"], width: int) -> Float[Array, "*rows width"]:
    """Sums of the halves of the halves, down to at most `width` or an odd number of values."""
    while x.shape[-1] > width and x.shape[-1] % 2 == 0:
        x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return x
