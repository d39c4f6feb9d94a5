"""Array types and the legend of shape letters.

| letter | dimension                              | letter     | dimension                               |
|--------|----------------------------------------|------------|-----------------------------------------|
| `B`    | rows of a batch                        | `D`        | `d_model`                               |
| `b`    | rows whose loss a device computes      | `F`        | `d_ff`                                  |
| `T`    | positions of a row                     | `V`        | `vocab_size`                            |
| `t`    | positions that a device normalises     | `L`        | layers                                  |
| `S`    | positions of keys, slots of a KV cache | `H`        | query heads                             |
| `N`    | tokens of a flattened batch            | `K`        | key-value heads                         |
| `P`    | preference pairs in a row              | `Dh`       | `head_dim`                              |
| `E`    | experts                                | `Dk`, `Dv` | dimensions of a key, of a value         |
| `k`    | experts that a token uses              | `Dr`       | rotated dimensions of a head            |
| `X`    | experts of one device                  | `Dc`       | dimensions of latent attention's latent |
| `W`    | devices that share the experts         | `R`        | rows: of chosen experts, of a key head  |
| `Q`    | rows of a receiver's buffer            | `G`        | groups of a decode batch's slots        |

A signature reads `Float[Array, "B T D"]`; `Shaped` is of any dtype. Tests check shapes (`tests/array_shapes.py`), a run
does not. `*name` is any number of dimensions, and a word (`rows columns`) explains itself.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

type Array = jax.Array
type Batch = Mapping[str, jax.Array]
type PyTree = Any

__all__ = ["Array", "Batch", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree", "Shaped"]
