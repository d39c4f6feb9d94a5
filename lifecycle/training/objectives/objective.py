"""From a formula to an objective: a function from a model's parameters and a batch to sums.

Only this module knows both a formula and the machine: the forward pass, this device's rows and positions, the other
devices' contributions, and the routers' terms. A row of preference pairs holds up to `P` pairs, each as two consecutive
segments: pair `p` is segment `2p + 1` (chosen) and `2p + 2` (rejected). A pair never crosses rows, so its
log-probabilities are two segment sums. `loss_mask` selects the answers' tokens.
"""

from collections.abc import Callable
from typing import Any

import jax

from lifecycle.core.typing import Array, Batch, Float
from lifecycle.kernels.token_statistics import token_logprobs
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.decoder import forward_train, head
from lifecycle.model.params import Params
from lifecycle.model.pipeline import own_rows
from lifecycle.parallel.collectives import psum_identity_grad, replicated_share
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import PairLikelihoods, TokenLikelihoods
from lifecycle.training.objectives.mtp import with_modules
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.objectives.router import with_routers
from lifecycle.training.objectives.sums import Sums

type Objective = Callable[[Params, Batch], Sums]
type Formula = Callable[[TrainConfig, Any], Sums]  # (the stage's settings, likelihoods) -> sums


def build_objective(model: ModelConfig, train: TrainConfig) -> Objective:
    """The objective of a stage with these settings: `objective(params, batch)`; on a mesh, of this device's shards of
    both.

    The sums over all devices of a mesh are those of the global batch, and so are their gradients.
    """
    kind = objective_kind(train.objective)
    if kind.runs_model:
        return kind.load()(model, train)
    formula, apply = kind.load(), APPLY[kind.rows]

    def objective(params: Params, batch: Batch) -> Sums:
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        hidden, routers = forward_train(model, params, *inputs, train.remat, train.precision)
        sums = apply(formula, model, train, params, batch, hidden)
        if train.computed(model).num_mtp_modules:
            sums, of_modules = with_modules(model, train, params, batch, hidden, sums)
            routers = routers | of_modules
        return with_routers(model, sums, routers)

    return objective


def _apply_to_tokens(
    formula: Formula, model: ModelConfig, train: TrainConfig, params: Params, batch: Batch, hidden: Array
) -> Sums:
    likelihoods = TokenLikelihoods(batch, hidden, head(model, params), model.logits_soft_cap, train.loss_chunks)
    return formula(train, likelihoods)


def _apply_to_pairs(
    formula: Formula, model: ModelConfig, train: TrainConfig, params: Params, batch: Batch, hidden: Array
) -> Sums:
    sums = formula(train, pair_likelihoods(model, params, batch, hidden, train.loss_chunks))
    # all devices of a row's positions have the same sums, so each gives a share
    return jax.tree.map(lambda value: replicated_share(value, "seq"), sums)


APPLY = {"tokens": _apply_to_tokens, "chat": _apply_to_tokens, "pairs": _apply_to_pairs}  # by kind of rows


def pair_likelihoods(
    model: ModelConfig, params: Params, batch: Batch, hidden: Float[Array, "B t D"], chunks: int = 1
) -> PairLikelihoods:
    """The likelihoods of a batch's pairs, from the final hidden states of this device's `own_rows`; `chunks` of the
    vocabulary."""
    targets, mask, segments = (own_rows(batch[name]) for name in ("targets", "loss_mask", "segment_ids"))
    batch_size, num_pairs = own_rows(batch["pair_mask"]).shape

    def per_answer(values: Float[Array, "B T"]) -> Float[Array, "B P 2"]:
        totals = jax.vmap(lambda v, ids: jax.ops.segment_sum(v, ids, 2 * num_pairs + 1))(values, segments)
        return psum_identity_grad(totals[:, 1:].reshape(batch_size, num_pairs, 2), "seq")

    logprobs = token_logprobs(hidden, head(model, params), targets, model.logits_soft_cap, chunks) * mask
    return PairLikelihoods(batch, per_answer(logprobs), per_answer(mask))


def pair_logprobs(
    model: ModelConfig, params: Params, batch: Batch, chunks: int = 1, precision: Precision | None = None
) -> Float[Array, "B P 2"]:
    """The log-probability of each answer of a batch's pairs, chosen first; on a mesh, of this device's rows. `chunks`
    of the vocabulary; `precision`: of the layers' products."""
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden, _ = forward_train(model, params, *inputs, precision=precision)
    return pair_likelihoods(model, params, batch, hidden, chunks).logprobs
