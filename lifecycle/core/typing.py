"""Array types and the one legend of shape letters.

| letter | dimension                         | letter | dimension                    |
|--------|-----------------------------------|--------|------------------------------|
| `B`    | rows of a batch                   | `L`    | layers                       |
| `T`    | positions of a row                | `H`    | query heads                  |
| `S`    | positions of a KV cache / of keys | `K`    | key-value heads              |
| `D`    | `d_model`                         | `Dh`   | `head_dim`                   |
| `F`    | `d_ff`                            | `V`    | `vocab_size`                 |
| `P`    | preference pairs in a row         | `N`    | tokens of a flattened batch  |

A signature reads `Float[Array, "B T D"]`; the letters are documentation and are not checked at run time.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

type Array = jax.Array
type Batch = Mapping[str, jax.Array]
type PyTree = Any

__all__ = ["Array", "Batch", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree"]
