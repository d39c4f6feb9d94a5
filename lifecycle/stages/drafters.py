"""A drafter's first weights: fresh, with the vocabulary of its stage's rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import head
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.params import Params, init_drafter, logical_axes
from lifecycle.model.stacks import DRAFTER
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.training.packing import RowSource

MOST_ROWS = 4096  # whose tokens are counted, spread evenly: enough to rank a few ten thousand of them


def with_drafter(model: ModelConfig, target: Params, rows: RowSource, seed: int, mesh: Mesh) -> Params:
    """The weights of a target with a fresh drafter, sharded over `mesh`; unchanged if they have one already."""
    if DRAFTER in target:
        return target
    assert model.drafter is not None
    size = model.drafter.vocab_size
    ids = None if size is None else jnp.asarray(frequent_ids(rows, model.vocab_size, size))

    def made(key: jax.Array, target: Params) -> Params:
        drafter = init_drafter(model, key)
        if ids is None:
            return drafter
        return drafter | {VOCABULARY: {"head": head(model, target)[ids], "ids": ids.astype(jnp.float32)}}

    shardings = tree_shardings(mesh, logical_axes(model))[DRAFTER]
    return target | {DRAFTER: jax.jit(made, out_shardings=shardings)(jax.random.key(seed), target)}


def frequent_ids(rows: RowSource, vocab_size: int, num: int) -> np.ndarray:
    """The ids that are targets of these rows most often, ascending; of equally frequent ones the first."""
    counts = np.zeros(vocab_size, np.int64)
    for number in np.unique(np.linspace(0, rows.num_rows - 1, MOST_ROWS, dtype=np.int64)):
        row = rows.row(int(number))
        counts += np.bincount(row["targets"][row["loss_mask"] > 0], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:num])
