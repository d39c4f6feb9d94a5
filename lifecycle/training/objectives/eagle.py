"""EAGLE-3 (Li et al. 2025): a drafter learns the distribution of its frozen target, several tokens ahead.

A step's loss is the cross-entropy with the target's distribution over the tokens that can be drafted; positions where
the target's likeliest token is none of these are left out, as in the published training (SafeAILab/EAGLE,
`traineagle3/cnets.py`). Only the drafter's block has gradients: the target runs forward, once.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch, Int, Shaped
from lifecycle.kernels.distillation import distillation, likeliest
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_taking
from lifecycle.model.embedding import head
from lifecycle.model.mtp import ahead
from lifecycle.model.params import Params
from lifecycle.model.prediction import draft_head, draft_ids, forward_drafts
from lifecycle.model.stacks import DRAFTER
from lifecycle.parallel.collectives import all_gather
from lifecycle.training.drafting import EagleConfig
from lifecycle.training.objectives.objective import Context, Objective
from lifecycle.training.objectives.sums import Sums

ACCEPTANCE = "acceptance_"  # metrics: with the number of the drafted token, from 1 on
ACCEPTED = "accepted"


def eagle(model: ModelConfig, train: EagleConfig) -> Objective:
    """The objective: the sum over unrolled steps of their cross-entropies, in nats, weighted by `decay` to the power of
    the step and divided by the number of tokens that the first one predicts.

    Logged: `acceptance_K`, the share of the tokens where the `K`-th drafted token is the target's likeliest one; and
    `accepted`, the mean number of drafted tokens before the first that is not, which is what a greedy decode keeps if
    the rows are what the target itself writes.
    """

    def loss_of(params: Params, batch: Batch, context: Context) -> Sums:
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        params = jax.lax.stop_gradient(params) | {DRAFTER: params[DRAFTER]}
        hidden, taken = forward_taking(model, params, *inputs, model.drafter_layers)
        hidden = all_gather(hidden, "norm_seq", 1)
        rows = [ahead(batch, depth) for depth in range(1, train.draft_steps + 1)]
        states = forward_drafts(model, params, taken, rows, batch["segment_ids"], train.remat, train.precision)
        best = _places(model, params, likeliest(hidden, head(model, params), model.logits_soft_cap))
        table, loss = draft_head(model, params), jnp.zeros((), jnp.float32)
        is_kept, metrics, counts = jnp.ones(best.shape, bool), {}, {}
        total = jnp.zeros((), jnp.float32)
        for depth, (row, state) in enumerate(zip(rows, states, strict=True), 1):
            wanted, mask = shifted(best, depth), row["loss_mask"]
            weights = mask * (wanted >= 0)
            of_step, drafted = distillation(state, shifted(hidden, depth), table, weights, model.logits_soft_cap)
            loss += train.decay ** (depth - 1) * of_step
            is_right = drafted == wanted
            is_kept &= is_right
            total += (mask * is_kept).sum()
            name = f"{ACCEPTANCE}{depth}"
            metrics[name], counts[name] = (mask * is_right).sum(), mask.sum()
        return Sums(loss, rows[0]["loss_mask"].sum(), metrics={**metrics, ACCEPTED: total}, counts=counts)

    return Objective(loss_of)


def shifted(x: Shaped[Array, "B T *dims"], depth: int) -> Shaped[Array, "B T *dims"]:
    """What `x` is `depth` positions later in the row; 0 past its end."""
    return jnp.pad(x, [(0, 0), (0, depth)] + [(0, 0)] * (x.ndim - 2))[:, depth:]


def _places(model: ModelConfig, params: Params, ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each id's place among those that can be drafted; -1: it cannot."""
    drafted = draft_ids(model, params[DRAFTER])
    places = jnp.full(model.vocab_size, -1).at[drafted].set(jnp.arange(drafted.size))
    return places[ids]
