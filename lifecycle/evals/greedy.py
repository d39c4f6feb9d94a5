"""Whether a continuation is the model's greedy one, from one scoring pass.

A continuation is greedy if each of its ids has the largest logit after the context and the ids before it; of equal
logits the first counts, as for `argmax`. This is lm-evaluation-harness's `is_greedy` (`HFLM._loglikelihood_tokens`:
`(greedy_tokens == cont_toks).all()`), its `acc` of a task of output type `loglikelihood`.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch, Bool, Float
from lifecycle.evals.subject import Pair
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward, logits
from lifecycle.model.params import Params
from lifecycle.model.pipeline import own_rows
from lifecycle.parallel.collectives import all_gather
from lifecycle.parallel.mesh import AnyMesh, spec
from lifecycle.parallel.placement import on_mesh, row_order, shard_batch
from lifecycle.training.scoring import RowShapes
from lifecycle.training.state import param_specs

BLOCK = 256  # positions whose logits exist at once
SHORTEST_ROW = 64  # positions; longer rows have the next power of two, so that few programs are compiled


def greedy_loglikelihoods(
    config: ModelConfig, params: Params, pairs: Sequence[Pair], mesh: Mesh, num_ids: int
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats, and whether the continuation is greedy; `params` are on `mesh`. Ids from
    `num_ids` on, the vocabulary's padding, are never generated, and so no other id's betters.

    A pair takes a row, so pairs of similar length should be neighbours. Each has at least one token on both sides, and
    all but its last fit `config.max_seq_len`.
    """
    shapes = RowShapes.of(mesh)
    longest = max((len(context) + len(continuation) - 1 for context, continuation in pairs), default=1)
    length = min(max(SHORTEST_ROW, 1 << (longest - 1).bit_length()), config.max_seq_len)
    length = -(-length // shapes.unit) * shapes.unit
    height, order = shapes.height(length), row_order(length, mesh.shape["context"])
    scores: list[tuple[float, bool]] = []
    for begin in range(0, len(pairs), height):
        part = pairs[begin : begin + height]
        scored = _score_rows(config, mesh, num_ids, params, shard_batch(_batch(part, height, length), mesh))
        logprobs, is_top = (_in_order(array, order) for array in scored)
        for row, (context, continuation) in enumerate(part):
            at = np.s_[row, len(context) - 1 : len(context) + len(continuation) - 1]
            scores.append((float(logprobs[at].sum(dtype=np.float64)), bool(is_top[at].all())))
    return scores


@partial(jax.jit, static_argnames=("config", "mesh", "num_ids"))
def _score_rows(
    config: ModelConfig, mesh: AnyMesh, num_ids: int, params: Params, batch: Batch
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Each target's log-probability, and whether it is the likeliest id; replicated, in `shard_batch`'s order."""

    def local(params: Params, batch: Batch) -> tuple[Array, Array]:
        hidden = forward(config, params, batch["tokens"], batch["positions"], batch["segment_ids"])
        return _score(config, params, all_gather(hidden, "norm_seq", 1), own_rows(batch["targets"]), num_ids)

    out = spec("loss_rows", "seq")
    scored = on_mesh(local, mesh, param_specs(config), (out, out))(params, batch)
    return jax.lax.with_sharding_constraint(scored, NamedSharding(mesh, P()))


def _score(config: ModelConfig, params: Params, hidden: Array, targets: Array, num_ids: int) -> tuple[Array, Array]:
    """By blocks of positions: the logits of all would be too large."""

    def block(part: tuple[Array, Array]) -> tuple[Array, Array]:
        found, wanted = logits(config, params, part[0]), part[1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(found), wanted[:, None], axis=-1)[:, 0]
        return chosen, jnp.where(jnp.arange(found.shape[-1]) < num_ids, found, -jnp.inf).argmax(-1) == wanted

    size = math.gcd(targets.size, BLOCK)
    blocks = (hidden.reshape(-1, size, hidden.shape[-1]), targets.reshape(-1, size))
    scored = jax.lax.map(block, blocks)
    return scored[0].reshape(targets.shape), scored[1].reshape(targets.shape)


def _batch(pairs: Sequence[Pair], height: int, length: int) -> dict[str, np.ndarray]:
    tokens, targets, segment_ids = np.zeros((3, height, length), np.int32)
    for row, (context, continuation) in enumerate(pairs):
        ids, used = [*context, *continuation], np.s_[row, : len(context) + len(continuation) - 1]
        tokens[used], targets[used], segment_ids[used] = ids[:-1], ids[1:], 1
    positions = np.tile(np.arange(length, dtype=np.int32), (height, 1))
    return {"tokens": tokens, "targets": targets, "positions": positions, "segment_ids": segment_ids}


def _in_order(array: Array, order: np.ndarray) -> np.ndarray:
    """The array with its positions in the row's own order."""
    found = jax.device_get(array)
    result = np.empty_like(found)
    result[:, order] = found
    return result
