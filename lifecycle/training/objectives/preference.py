"""Preference tuning on pairs: DPO and ORPO over packed pairs.

A row holds up to `P` pairs, each as two consecutive segments: pair `p` is segment `2p + 1` (chosen) and `2p + 2`
(rejected), so a pair never crosses rows and its log-probabilities are two segment sums. `loss_mask` leaves the answers'
tokens. Beside the usual arrays the batch carries `pair_mask [B, P]` and, for DPO, `ref_logprobs [B, P, 2]`.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch, Float
from lifecycle.kernels.cross_entropy import token_logprobs
from lifecycle.model.config import ModelConfig, Remat
from lifecycle.model.decoder import Params, forward_train, head
from lifecycle.model.pipeline import own_rows
from lifecycle.model.routing import RouterStats
from lifecycle.parallel.collectives import psum_identity_grad, replicated_share
from lifecycle.training.config import DpoConfig, OrpoConfig
from lifecycle.training.objectives.router import Sums, with_routers


def pair_logprobs(
    config: ModelConfig, params: Params, batch: Batch, remat: Remat | None = None
) -> tuple[Float[Array, "B P 2"], Float[Array, "B P 2"], dict[str, RouterStats]]:
    """Log-probability of each answer, chosen first, and its number of tokens; zeros where there is no pair. Also what
    the routers say. On a mesh: of this device's rows, `own_rows` of a pipeline."""
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden, routers = forward_train(config, params, *inputs, remat=remat)
    batch = {name: own_rows(array) for name, array in batch.items()}
    found = token_logprobs(hidden, head(config, params), batch["targets"], config.logits_soft_cap) * batch["loss_mask"]
    batch_size, num_pairs = batch["pair_mask"].shape
    segments = 2 * num_pairs + 1

    def per_segment(values: Array) -> Array:
        totals = jax.vmap(lambda v, ids: jax.ops.segment_sum(v, ids, segments))(values, batch["segment_ids"])
        return psum_identity_grad(totals[:, 1:].reshape(batch_size, num_pairs, 2), "seq")

    return per_segment(found), per_segment(batch["loss_mask"]), routers


def dpo(config: ModelConfig, settings: DpoConfig, params: Params, batch: Batch) -> Sums:
    """Direct preference optimisation, sigmoid loss (Rafailov et al. 2023, equation 7), summed over pairs.

    With `sft_weight`, the chosen answers' mean loss is added (Pang et al. 2024, "Iterative Reasoning Preference
    Optimization", equation 1).
    """
    logprobs, lengths, routers = pair_logprobs(config, params, batch, settings.remat)
    rewards = settings.beta * (logprobs - own_rows(batch["ref_logprobs"]))
    margins = rewards[..., 0] - rewards[..., 1]
    mask = own_rows(batch["pair_mask"])
    losses = -jax.nn.log_sigmoid(margins) + settings.sft_weight * _mean_loss(logprobs, lengths)
    aux = _pair_sums(logprobs, lengths, margins, mask) | {
        "rewards_chosen": (rewards[..., 0] * mask).sum(),
        "rewards_rejected": (rewards[..., 1] * mask).sum(),
    }
    return with_routers(config, _summed(losses, mask, aux), routers)


def orpo(config: ModelConfig, settings: OrpoConfig, params: Params, batch: Batch) -> Sums:
    """Odds-ratio preference optimisation (Hong et al. 2024, equations 4 to 7): no reference model.

    Log-probabilities are means per token, as in the paper; `beta` is its lambda.
    """
    logprobs, lengths, routers = pair_logprobs(config, params, batch, settings.remat)
    means = logprobs / jnp.maximum(lengths, 1)
    # log odds = log p - log(1 - p); the minimum keeps log1p finite where p rounds to 1
    odds = means - jnp.log1p(-jnp.exp(jnp.minimum(means, -1e-6)))
    margins = odds[..., 0] - odds[..., 1]
    mask = own_rows(batch["pair_mask"])
    losses = -means[..., 0] - settings.beta * jax.nn.log_sigmoid(margins)
    sums = _summed(losses, mask, _pair_sums(logprobs, lengths, margins, mask))
    return with_routers(config, sums, routers)


def _summed(losses: Array, mask: Array, aux: dict[str, Array]) -> Sums:
    """Sums over pairs; every device of a row's positions has found the same, so each gives a part of it."""
    parts = {name: replicated_share(value, "seq") for name, value in aux.items()}
    return replicated_share((losses * mask).sum(), "seq"), replicated_share(mask.sum(), "seq"), parts


def _mean_loss(logprobs: Array, lengths: Array) -> Array:
    return -logprobs[..., 0] / jnp.maximum(lengths[..., 0], 1)


def _pair_sums(logprobs: Array, lengths: Array, margins: Array, mask: Array) -> dict[str, Array]:
    """What every preference objective logs.

    `accuracy` is the share of pairs with a positive margin; DPO's is relative to the reference, so a half before
    training. `likelihood_accuracy` compares mean log-probabilities per token and says what the model itself prefers.
    """
    means = logprobs / jnp.maximum(lengths, 1)
    return {
        "margins": (margins * mask).sum(),
        "accuracy": (_share_right(margins) * mask).sum(),
        "likelihood_accuracy": (_share_right(means[..., 0] - means[..., 1]) * mask).sum(),
        "logprobs_chosen": (logprobs[..., 0] * mask).sum(),
        "logprobs_rejected": (logprobs[..., 1] * mask).sum(),
    }


def _share_right(difference: Array) -> Array:
    """1 where positive, 0 where negative; a tie counts as half right."""
    return (jnp.sign(difference) + 1) / 2
