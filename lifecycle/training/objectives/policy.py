"""Policy gradients: completions of the policy, or of a policy shortly before it, weighted by their advantages.

A row's segments are completions with their prompts. Per segment: `advantages`, or per token `token_advantages`. Per
token, where they are needed: `old_logprobs` of the policy that the completions are from (without them they are from
this one), `sampler_logprobs` as the sampler computed them, `reference_logprobs` of the initial model. Names are TRL's
and verl's.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float
from lifecycle.parallel.columns import declare
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.policy import Aggregation, PolicyConfig

ADVANTAGES, OLD, SAMPLER, REFERENCE = "advantages", "old_logprobs", "sampler_logprobs", "reference_logprobs"
TOKEN_ADVANTAGES = "token_advantages"
declare("segment", ADVANTAGES)
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
    per_segment = aggregated(settings, settings.form.aggregation, completions, losses, context)
    if settings.entropy_weight:
        entropies = aggregated(settings, "token-mean", completions, seen.entropies, context)
        per_segment = per_segment - settings.entropy_weight * entropies
    return _sums(seen, per_segment, metrics)


def of_batch(settings: PolicyConfig, completions: GroupLikelihoods) -> dict[str, Array]:
    """The context: how many completions there are, and how many of their tokens are learned."""
    return {"completions": completions.mask.sum(), "tokens": (completions.lengths[..., 0] * completions.mask).sum()}


class Tokens:
    """What surrogates are functions of, `[B, T]`: log-probabilities, ratios and advantages."""

    def __init__(self, settings: PolicyConfig, completions: GroupLikelihoods) -> None:
        self.settings, self.completions = settings, completions
        found = completions.statistics_at(settings.temperature)
        self.logprobs, self.entropies = found.logprobs, found.entropies
        is_older = OLD in completions.batch
        self.old = completions.column(OLD) if is_older else jax.lax.stop_gradient(self.logprobs)
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
        of_segment = self.completions.segment_sum_at_tokens(each * self.completions.learned)
        if level == "sequence":
            of_segment = of_segment / jnp.maximum(self.completions.per_token(self.completions.lengths), 1)
        return of_segment

    def metrics(self) -> dict[str, Float[Array, "B T"]]:
        """What is logged of learned tokens, under TRL's names."""
        found = {"entropy": self.entropies}
        if SAMPLER in self.completions.batch and self.settings.temperature == 1:  # which is the sampler's
            found["sampling/logp_difference"] = jnp.abs(self.old - self.completions.column(SAMPLER))
        return found

    def clipped(self) -> dict[str, Bool[Array, "B T"]]:
        """Where ratios are clipped, under TRL's names."""
        settings, rises = self.settings, self.advantages > 0
        match settings.form.surrogate:
            case "clip":
                low = (self.ratio < 1 - settings.epsilon_low) & (self.advantages < 0)
                high = (self.ratio > 1 + settings.epsilon_high) & rises
                return {"low_mean": low, "high_mean": high, "region_mean": low | high}
            case "cispo":
                return {"cispo": (self.ratio > settings.epsilon_high) & rises}
            case _:
                return {}


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
    settings: PolicyConfig,
    aggregation: Aggregation,
    completions: GroupLikelihoods,
    values: Float[Array, "B T"],
    context: Mapping[str, Array],
) -> Float[Array, "B P"]:
    """A value per completion, whose mean over completions is the aggregate."""
    totals = completions.per_segment(values * completions.learned)[..., 0]
    match aggregation:
        case "token-mean":
            return totals * context["completions"] / jnp.maximum(context["tokens"], 1)
        case "seq-mean-token-sum":
            return totals
        case "seq-mean-token-sum-norm":
            return totals / settings.max_completion_tokens
        case _:
            return totals / jnp.maximum(completions.lengths[..., 0], 1)


def _sums(seen: Tokens, losses: Float[Array, "B P"], metrics: dict[str, Float[Array, "B T"]]) -> Sums:
    """Sums over completions; metrics per learned token, the shares of clipped ratios per ratio."""
    completions = seen.completions
    mask, lengths = completions.mask, completions.lengths[..., 0]
    num = mask.sum()
    per_token, per_ratio = (jnp.ones_like(lengths), (lengths * mask).sum()), (1 / jnp.maximum(lengths, 1), num)
    if seen.settings.form.level == "token":
        per_ratio = per_token
    clipped = {f"clip_ratio/{name}": where.astype(jnp.float32) for name, where in seen.clipped().items()}
    means: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    for values, (weight, count) in ((metrics, per_token), (clipped, per_ratio)):
        for name, value in jax.lax.stop_gradient(values).items():
            totals = completions.per_segment(value * completions.learned)[..., 0]
            means[name], counts[name] = (totals * weight * mask).sum(), count
    return Sums((losses * mask).sum(), num, metrics=means, counts=counts)
