"""Odds-ratio preference optimisation: fine-tuning and preference in one loss, without a reference model."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.preference import in_units_of_pairs, pair_metrics
from lifecycle.training.objectives.sums import Sums, sums_over
from lifecycle.training.preference import OrpoConfig


def orpo(settings: OrpoConfig, pairs: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The chosen answers' loss plus the odds-ratio loss, per pair (Hong et al. 2024, "ORPO", equations 4 to 7).

    Odds are of log-probabilities per token, as in the paper; `beta` is its lambda. The chosen answers' loss is the
    paper's or TRL's (`OrpoConfig.form`).
    """
    if settings.form == "trl":
        pairs = replace(pairs, wanted="target_mask")
    means = pairs.mean_logprobs
    odds = means - _log1mexp(means)
    gain = odds[..., 0] - odds[..., 1]
    ratio = jax.nn.log_sigmoid(gain)
    nll = -means[..., 0]
    if settings.form == "trl":
        of_all = pairs.per_segment(pairs.statistics.logprobs * pairs.column("target_mask"))[..., 0]
        nll = in_units_of_pairs(-of_all, context, "tokens")
    metrics = pair_metrics(pairs, settings.beta * means, means)
    metrics |= {"log_odds_chosen": gain, "log_odds_ratio": ratio, "nll_loss": nll}
    return sums_over(pairs.mask, nll - settings.beta * ratio, metrics)


def _log1mexp(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """`log(1 - exp(x))` for a log-probability (Maechler 2012, "Accurately Computing log(1 - exp(-|a|))"), finite where
    the probability rounds to 1."""
    x = jnp.minimum(x, -1e-6)
    is_near = x > -jnp.log(2.0)
    near = jnp.log(-jnp.expm1(jnp.where(is_near, x, -1.0)))
    return jnp.where(is_near, near, jnp.log1p(-jnp.exp(jnp.where(is_near, -1.0, x))))
