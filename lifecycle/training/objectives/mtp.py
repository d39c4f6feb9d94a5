"""The term that prediction modules add to an objective over tokens: the losses of further tokens."""

from dataclasses import replace
from typing import cast

import jax

from lifecycle.core.typing import Array, Batch, Float
from lifecycle.model.config import ModelConfig
from lifecycle.model.embedding import head
from lifecycle.model.mtp import ahead
from lifecycle.model.params import Params
from lifecycle.model.prediction import forward_modules
from lifecycle.model.routing import RouterStats
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums

LOSS = "mtp_loss_"  # metrics: with the module's number, from 1 on


def with_modules(
    model: ModelConfig, train: TrainConfig, params: Params, batch: Batch, hidden: Float[Array, "b t D"], sums: Sums
) -> tuple[Sums, dict[str, RouterStats]]:
    """An objective's sums with the modules' losses as an auxiliary loss, and the statistics of their routers.

    The auxiliary loss is the mean over the modules of their sums over tokens, times `mtp_weight`. All are divided by
    the count of the objective itself, whatever the number of tokens that a module predicts (DeepSeek-V3, equations 24
    and 25): each predicted token counts the same, and parts of a batch add up exactly. Logged: `mtp_loss_K`, the mean
    over the tokens that module K predicts, in nats.
    """
    rows = [ahead(batch, depth) for depth in range(1, model.num_mtp_modules + 1)]
    states, routers = forward_modules(model, params, hidden, rows, train.remat, train.precision)
    losses: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    for depth, (row, state) in enumerate(zip(rows, states, strict=True), 1):
        tokens = TokenLikelihoods(row, state, head(model, params), model.logits_soft_cap, train.loss_chunks)
        losses[f"{LOSS}{depth}"], counts[f"{LOSS}{depth}"] = tokens.nll(tokens.mask), tokens.mask.sum()
    auxiliary = train.modules_weight / len(losses) * cast(Array, sum(losses.values()))
    logged = {"metrics": sums.metrics | jax.lax.stop_gradient(losses), "counts": sums.counts | counts}
    return replace(sums, auxiliary=auxiliary, **logged), routers
