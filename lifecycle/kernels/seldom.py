"""Loops that usually do not run: for rare data, such as sums that overflow, or far more rows than planned for.

A loop of no rounds costs a comparison, and a plan counts it as none: it finds it by the scope's name.
"""

from collections.abc import Callable
from typing import Any

import jax

from lifecycle.core.typing import Array, Int

SELDOM = "seldom"  # the named scope


def seldom(num_rounds: Int[Array, ""], round_of: Callable[[Any, Any], Any], first: Any) -> Any:
    """`jax.lax.fori_loop` from 0, of usually no rounds: `round_of(number, value)` from `first` on."""
    with jax.named_scope(SELDOM):
        return jax.lax.fori_loop(0, num_rounds, round_of, first)
