"""A drafter's first weights: those of its target's end where they fit, with the vocabulary of its stage's rows.

The drafter's states begin in its target's own coordinates, in which the final norm and the head read them: SmolLM2-135M
has activations in the thousands in a few dimensions, and a random projection spreads them over all. Its drafter's loss
after 60 steps of 512 tokens was 12.4 so, and 14.5 from random weights (docs/log.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lifecycle.model.config import ModelConfig
from lifecycle.model.drafter import NUM_TAKEN, VOCABULARY, block_config
from lifecycle.model.embedding import head
from lifecycle.model.params import Params, init_drafter, logical_axes
from lifecycle.model.stacks import DRAFTER, layer_groups
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.training.packing import RowSource

MOST_ROWS = 4096  # whose tokens are counted, spread evenly: enough to rank a few ten thousand of them


def with_drafter(model: ModelConfig, target: Params, rows: RowSource, seed: int, mesh: Mesh) -> Params:
    """The weights of a target with a new drafter, sharded over `mesh`; unchanged if they have one already."""
    if DRAFTER in target:
        return target
    assert model.drafter is not None
    size = model.drafter.vocab_size
    ids = None if size is None else jnp.asarray(frequent_ids(rows, model.vocab_size, size))

    def made(key: jax.Array, target: Params) -> Params:
        drafter = init_drafter(model, key) | ending(model, target)
        if ids is None:
            return drafter
        return drafter | {VOCABULARY: {"head": head(model, target)[ids], "ids": ids.astype(jnp.float32)}}

    shardings = tree_shardings(mesh, logical_axes(model))[DRAFTER]
    return target | {DRAFTER: jax.jit(made, out_shardings=shardings)(jax.random.key(seed), target)}


def ending(model: ModelConfig, target: Params) -> Params:
    """What a drafter has of its target's end: the input of the last layer that it reads as its feature, the final norm,
    and the last layer's feed-forward if that is of the drafter's form and size."""
    last = last_layer(model, target)
    taken = jnp.zeros((NUM_TAKEN, model.d_model, model.d_model)).at[-1].set(jnp.eye(model.d_model))
    begun: Params = {
        "projection": taken.reshape(-1, model.d_model),
        "norm": {"scale": target["norm"]["scale"] + model.norm_offset},
    }
    block, own = block_config(model), last.get("feed_forward", {})
    inner, outer = (block.d_model, block.d_ff), (block.d_ff, block.d_model)
    is_alike = jax.tree.map(jnp.shape, own) == {"gate": inner, "up": inner, "down": outer}
    if is_alike and model.activation == block.activation:
        begun["feed_forward"] = own
        if "feed_forward_norm" in last:
            begun["feed_forward_norm"] = {"scale": last["feed_forward_norm"]["scale"] + model.norm_offset}
    return begun


def last_layer(model: ModelConfig, target: Params) -> Params:
    """The arrays of a model's last layer."""
    return jax.tree.map(lambda stack: stack[-1], target["blocks"][layer_groups(model)[-1].stacks[-1]])


def frequent_ids(rows: RowSource, vocab_size: int, num: int) -> np.ndarray:
    """The ids that are targets of these rows most often, ascending; of equally frequent ones the first."""
    counts = np.zeros(vocab_size, np.int64)
    for number in np.unique(np.linspace(0, rows.num_rows - 1, MOST_ROWS, dtype=np.int64)):
        row = rows.row(int(number))
        counts += np.bincount(row["targets"][row["loss_mask"] > 0], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:num])
