"""Policy gradients: completions of the policy, or of a policy shortly before it, weighted by their advantages.

A row's segments are completions with their prompts. Per segment: `advantages`, or per token `token_advantages`. Per
token, where they are needed: `old_logprobs` of the policy that the completions are from (without them they are from
this one), `sampler_logprobs` as the sampler computed them, `reference_logprobs` of the initial model. Names are TRL's
and verl's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.parallel.columns import declare
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.policy import Aggregation, PolicyConfig

ADVANTAGES, OLD, SAMPLER, REFERENCE = "advantages", "old_logprobs", "sampler_logprobs", "reference_logprobs"
CLIPPED = "clip_ratio"  # metrics: shares of the ratios
declare("segment", ADVANTAGES)
TOKEN_ADVANTAGES = "token_advantages"
declare("token", OLD, SAMPLER, REFERENCE, TOKEN_ADVANTAGES)


def policy_gradient(settings: PolicyConfig, completions: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The surrogate of the advantages, plus the divergence from the initial model, less the entropy; a mean over
    completions or tokens (`LossForm`)."""
    seen = Tokens(settings, completions)
    losses = SURROGATES[settings.form.surrogate](seen)
    if settings.sampler_cap is not None:
        gap = jax.lax.stop_gradient(seen.old - completions.column(SAMPLER))
        losses = losses * jnp.minimum(jnp.exp(gap), settings.sampler_cap)
    metrics = seen.metrics()
    if settings.beta:
        divergence = _divergence(settings, seen)
        losses = losses + settings.beta * divergence
        metrics["kl"] = divergence
    if settings.entropy_weight:
        entropies = completions.statistics_at(settings.temperature).entropies
        bonus = settings.entropy_weight * aggregated("token-mean", entropies, seen, context)
    else:
        bonus = jnp.zeros(())
    per_segment = aggregated(settings.form.aggregation, losses, seen, context) - bonus
    return _sums(completions, per_segment, metrics, settings.form.level == "token")


def of_batch(settings: PolicyConfig, completions: GroupLikelihoods) -> dict[str, Array]:
    """The context: how many completions there are, and how many of their tokens are learned."""
    return {"completions": completions.mask.sum(), "tokens": (completions.lengths[..., 0] * completions.mask).sum()}


class Tokens:
    """What surrogates are functions of, `[B, T]`: log-probabilities, ratios and advantages."""

    def __init__(self, settings: PolicyConfig, completions: GroupLikelihoods) -> None:
        self.settings, self.completions = settings, completions
        self.logprobs = completions.statistics_at(settings.temperature).logprobs
        is_older = OLD in completions.batch
        self.old = completions.column(OLD) if is_older else jax.lax.stop_gradient(self.logprobs)
        self.mask = completions.learned
        self.advantages = (
            completions.column(TOKEN_ADVANTAGES)
            if TOKEN_ADVANTAGES in completions.batch
            else completions.per_token(completions.column(ADVANTAGES))
        )
        self.ratio = jnp.exp(self._log_ratio())

    def _log_ratio(self) -> Float[Array, "B T"]:
        each = self.logprobs - self.old
        level = self.settings.form.level
        if level == "token":
            return each
        of_segment = self.completions.segment_sum_at_tokens(each * self.mask)
        if level == "sequence":
            of_segment = of_segment / jnp.maximum(self.completions.per_token(self.completions.lengths), 1)
        return of_segment

    def metrics(self) -> dict[str, Float[Array, "B T"]]:
        """Values per learned token, for the log: TRL's names."""
        found = {"entropy": self.completions.statistics_at(self.settings.temperature).entropies}
        low = (self.ratio < 1 - self.settings.epsilon_low) & (self.advantages < 0)
        high = (self.ratio > 1 + self.settings.epsilon_high) & (self.advantages > 0)
        if self.settings.form.surrogate == "clip":
            clipped = {"low_mean": low, "high_mean": high, "region_mean": low | high}
            found |= {f"{CLIPPED}/{name}": where.astype(jnp.float32) for name, where in clipped.items()}
        if self.settings.form.surrogate == "cispo":
            is_clipped = (self.ratio > self.settings.epsilon_high) & (self.advantages > 0)
            found[f"{CLIPPED}/cispo"] = is_clipped.astype(jnp.float32)
        if SAMPLER in self.completions.batch:
            found["sampling/logp_difference"] = jnp.abs(self.old - self.completions.column(SAMPLER))
        return found


def _clip(of: Tokens) -> Float[Array, "B T"]:
    """Schulman et al. 2017, "Proximal Policy Optimization", equation 7; with `delta`, two-sided."""
    settings = of.settings
    clipped = jnp.clip(of.ratio, 1 - settings.epsilon_low, 1 + settings.epsilon_high)
    ratio = of.ratio if settings.delta is None else jnp.minimum(of.ratio, settings.delta)
    return -jnp.minimum(ratio * of.advantages, clipped * of.advantages)


def _cispo(of: Tokens) -> Float[Array, "B T"]:
    """MiniMax 2025, "MiniMax-M1", equation 4: the ratio is clipped and has no gradient."""
    ratio = jax.lax.stop_gradient(jnp.minimum(of.ratio, of.settings.epsilon_high))
    return -ratio * of.advantages * of.logprobs


def _sapo(of: Tokens) -> Float[Array, "B T"]:
    """Gao et al. 2025, "Soft Adaptive Policy Optimization", equation 6: a sigmoid in place of the clip."""
    settings = of.settings
    sharpness = jnp.where(of.advantages > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg)
    return -jax.nn.sigmoid(sharpness * (of.ratio - 1)) * 4 / sharpness * of.advantages


SURROGATES: Mapping[str, Callable[[Tokens], Float[Array, "B T"]]] = {"clip": _clip, "cispo": _cispo, "sapo": _sapo}


def _divergence(settings: PolicyConfig, of: Tokens) -> Float[Array, "B T"]:
    """An estimate of the divergence from the initial model (Schulman 2020, "Approximating KL Divergence")."""
    gap = of.completions.column(REFERENCE) - of.logprobs
    match settings.kl:
        case "k1":
            return -gap
        case "k2":
            return gap**2 / 2
        case _:
            return jnp.exp(gap) - gap - 1


def aggregated(
    aggregation: Aggregation, values: Float[Array, "B T"], of: Tokens, context: Mapping[str, Array]
) -> Float[Array, "B P"]:
    """A value per completion, whose mean over completions is the aggregate."""
    completions = of.completions
    totals = completions.per_segment(values * of.mask)[..., 0]
    match aggregation:
        case "token-mean":
            return totals * context["completions"] / jnp.maximum(context["tokens"], 1)
        case "seq-mean-token-sum":
            return totals
        case "seq-mean-token-sum-norm":
            return totals / of.settings.max_completion_tokens
        case _:
            return totals / jnp.maximum(completions.lengths[..., 0], 1)


def _sums(
    completions: GroupLikelihoods, losses: Float[Array, "B P"], metrics: dict[str, Any], is_per_token: bool
) -> Sums:
    """Sums over completions; metrics per learned token, those of clipped ratios per ratio."""
    is_one, lengths = completions.mask, completions.lengths[..., 0]
    num = (lengths * is_one).sum()
    means: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    for name, values in jax.lax.stop_gradient(metrics).items():
        totals = completions.per_segment(values * completions.learned)[..., 0]
        is_per_completion = name.startswith(CLIPPED) and not is_per_token
        means[name] = ((totals / jnp.maximum(lengths, 1) if is_per_completion else totals) * is_one).sum()
        counts[name] = is_one.sum() if is_per_completion else num
    return Sums((losses * is_one).sum(), is_one.sum(), metrics=means, counts=counts)
