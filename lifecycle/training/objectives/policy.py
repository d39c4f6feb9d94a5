"""Policy gradients: completions of the policy, or of a policy shortly before it, weighted by their advantages.

A row's segments are completions with their prompts. Per segment: `advantages`, or per token `token_advantages`. Per
token, where they are needed: `old_logprobs` of the policy that the completions are from (without them they are from
this one), `sampler_logprobs` as the sampler computed them, `reference_logprobs` of the initial model, `kept_ids`
`[B, T, kept]` that the sampler drew from. Names are TRL's and verl's.

What must hold: all log-probabilities are of the distribution that tokens were sampled from. Where top-k or top-p had
cut it, they are among the ids that were kept then, whatever the weights are now: policies of different supports have no
ratio (DeepSeek-AI 2025, "DeepSeek-V3.2", section 3.1, "Keep Sampling Mask").
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float
from lifecycle.parallel.collectives import axis_index, axis_size, psum
from lifecycle.parallel.columns import declare
from lifecycle.training.objectives.likelihoods import GroupLikelihoods, TokenLikelihoods
from lifecycle.training.objectives.sums import Sums, largest_of, smallest_of
from lifecycle.training.policy import Aggregation, PolicyConfig

ADVANTAGES, OLD, SAMPLER, REFERENCE = "advantages", "old_logprobs", "sampler_logprobs", "reference_logprobs"
TOKEN_ADVANTAGES, KEPT = "token_advantages", "kept_ids"
CLIPPED, GAP, WEIGHT = "clip_ratio/", "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
# Metrics that are extremes, and of what.
LARGEST = {f"{CLIPPED}high_max": f"{CLIPPED}high_mean", f"{GAP}/max": GAP, f"{WEIGHT}/max": WEIGHT}
SMALLEST = {f"{CLIPPED}low_min": f"{CLIPPED}low_mean", f"{WEIGHT}/min": WEIGHT}
MOST_LOG_RATIO, LEAST_LOG_WEIGHT = 20.0, math.log(1e-8)  # TRL's, of VESPO
declare("segment", ADVANTAGES)
declare("token", OLD, SAMPLER, REFERENCE, TOKEN_ADVANTAGES, KEPT)


def policy_logprobs(settings: PolicyConfig, tokens: TokenLikelihoods) -> Float[Array, "B T"]:
    """Each target's log-probability in the distribution that a token was sampled from: at the temperature, and among
    the ids that the sampler kept, if the batch has these."""
    if KEPT in tokens.batch:
        return tokens.logprobs_among(tokens.column(KEPT), settings.temperature)
    return tokens.statistics(settings.temperature).logprobs


def policy_gradient(settings: PolicyConfig, completions: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The surrogate of the advantages, plus the divergence from the initial model, less the entropy; a mean over
    completions or tokens (`LossForm`)."""
    seen = Tokens(settings, completions)
    losses = SURROGATES[settings.form.surrogate](seen) * seen.teaches(context)
    if settings.sampler_cap is not None and settings.form.surrogate != "vespo":  # which has it in its weight
        losses = losses * seen.sampler_weights
    metrics = {"entropy": seen.entropies}
    if settings.beta and not settings.lowers_rewards:
        divergence = estimated_divergence(settings.kl, completions.column(REFERENCE) - seen.logprobs)
        if settings.use_bias_correction_kl:
            divergence = divergence * seen.ratio
        losses = losses + settings.beta * divergence
        metrics["kl"] = divergence
    per_segment = aggregated(settings, settings.form.aggregation, completions, losses, context)
    sums = _sums(seen, per_segment, metrics)
    return _less_entropy(seen, context, sums) if settings.entropy_weight else sums


def _less_entropy(seen: "Tokens", context: Mapping[str, Array], sums: Sums) -> Sums:
    """The entropy of the tokens that teach makes the loss less; what it was before is logged."""
    is_top, num_top = seen.of_high_entropy(context)
    settings, tokens = seen.settings, {**context, "tokens": num_top}
    entropies = aggregated(settings, "token-mean", seen.completions, seen.entropies * is_top, tokens)
    bonus = settings.entropy_weight * (entropies * seen.completions.mask).sum()
    before = {"policy_loss": jax.lax.stop_gradient(sums.loss), "entropy_coef": settings.entropy_weight * sums.count}
    return replace(sums, loss=sums.loss - bonus, metrics=sums.metrics | before)


def of_batch(settings: PolicyConfig, completions: GroupLikelihoods) -> dict[str, Array]:
    """The context: how many completions there are, and how many of their tokens are learned; if only those of the
    highest entropy teach, all tokens' entropies."""
    found = {"completions": completions.mask.sum(), "tokens": (completions.lengths[..., 0] * completions.mask).sum()}
    if settings.top_entropy_quantile < 1:
        found["entropies"] = entropies_of_batch(settings, completions)
    return found


class Tokens:
    """What surrogates are functions of, `[B, T]`: log-probabilities, ratios and advantages."""

    def __init__(self, settings: PolicyConfig, completions: GroupLikelihoods) -> None:
        self.settings, self.completions = settings, completions
        found = completions.statistics_at(settings.temperature)
        self.entropies = found.entropies  # of all ids: how sure the model is, whatever its sampler does
        is_kept = KEPT in completions.batch
        self.logprobs = policy_logprobs(settings, completions.tokens) if is_kept else found.logprobs
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

    @cached_property
    def sampler_weights(self) -> Float[Array, "B T"]:
        """How much a token weighs because the sampler's distribution differs, without a gradient."""
        gap = jax.lax.stop_gradient(self.old - self.completions.column(SAMPLER))
        cap = self.settings.sampler_cap
        return jnp.exp(gap) if cap is None else jnp.minimum(jnp.exp(gap), cap)

    def teaches(self, context: Mapping[str, Array]) -> Float[Array, "B T"]:
        """1 for tokens that the surrogate is learned of, else 0; without a gradient."""
        found = self.of_high_entropy(context)[0]
        if self.settings.off_policy_mask_threshold is None:
            return found
        before = self.completions.column(SAMPLER) if SAMPLER in self.completions.batch else self.old
        gap = jax.lax.stop_gradient((before - self.logprobs) * self.completions.learned)
        lengths = self.completions.per_token(self.completions.lengths)
        mean = self.completions.segment_sum_at_tokens(gap) / jnp.maximum(lengths, 1)
        return found * ((self.advantages >= 0) | (mean <= self.settings.off_policy_mask_threshold))

    def of_high_entropy(self, context: Mapping[str, Array]) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
        """1 for the share of the batch's tokens whose entropies are the highest, else 0; and how many they are (Wang et
        al. 2025, "Beyond the 80/20 Rule", equation 6, with the threshold of the whole batch)."""
        if self.settings.top_entropy_quantile == 1:
            return jnp.ones_like(self.logprobs), context["tokens"]
        entropies = context["entropies"]
        is_top = (entropies >= quantile(entropies, 1 - self.settings.top_entropy_quantile)) & (entropies > 0)
        size = self.logprobs.shape[1]
        own = jax.lax.dynamic_slice_in_dim(is_top, axis_index("seq") * size, size, 1)
        return own[self.completions.column("row")].astype(jnp.float32), is_top.sum().astype(jnp.float32)

    @cached_property
    def phi(self) -> Float[Array, "B T"]:
        """VESPO's weight of each completion, `w^k exp(lambda (1 - w))` of the product `w` of its tokens' ratios; it has
        no gradient, and is 0 where it is not finite."""
        settings, learned = self.settings, self.completions.learned
        each = jnp.clip(self.logprobs - self.old, -MOST_LOG_RATIO, MOST_LOG_RATIO)
        if settings.sampler_cap is not None:
            each = each + jnp.clip(jnp.log(self.sampler_weights), LEAST_LOG_WEIGHT, MOST_LOG_RATIO)
        total = self.completions.segment_sum_at_tokens(jax.lax.stop_gradient(each) * learned)
        log_weight = jnp.clip(total, LEAST_LOG_WEIGHT, MOST_LOG_RATIO)
        rises = self.advantages >= 0
        power = jnp.where(rises, settings.vespo_k_pos, settings.vespo_k_neg)
        decay = jnp.where(rises, settings.vespo_lambda_pos, settings.vespo_lambda_neg)
        phi = jnp.exp(decay + power * log_weight - decay * jnp.exp(log_weight))
        return jnp.where(jnp.isfinite(phi), phi, 0.0)

    def of_sampler(self) -> dict[str, Float[Array, "B T"]]:
        """How far the sampler's distribution is from the trainer's, under TRL's names."""
        if SAMPLER not in self.completions.batch:
            return {}
        found = {GAP: jnp.abs(self.old - self.completions.column(SAMPLER))}
        is_weighed = self.settings.sampler_cap is not None
        return found | ({WEIGHT: self.sampler_weights} if is_weighed else {})

    def clipped(self) -> dict[str, Bool[Array, "B T"]]:
        """Where ratios are clipped, under TRL's names of the shares."""
        settings, rises = self.settings, self.advantages > 0
        match settings.form.surrogate:
            case "clip":
                low = (self.ratio < 1 - settings.epsilon_low) & (self.advantages < 0)
                high = (self.ratio > 1 + settings.epsilon_high) & rises
                return {f"{CLIPPED}low_mean": low, f"{CLIPPED}high_mean": high, f"{CLIPPED}region_mean": low | high}
            case "cispo":
                return {"cispo_clip_ratio": (self.ratio > settings.epsilon_high) & rises}
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


def _vespo(of: Tokens) -> Float[Array, "B T"]:
    """ "VESPO: Variational Sequence-Level Soft Policy Optimization" (arXiv 2602.10693): completions weigh by a smooth
    function of their ratio."""
    return -of.phi * of.advantages * of.logprobs


SURROGATES: Mapping[str, Callable[[Tokens], Float[Array, "B T"]]] = {
    "clip": _clip,
    "cispo": _cispo,
    "sapo": _sapo,
    "vespo": _vespo,
}


def entropies_of_batch(settings: PolicyConfig, completions: GroupLikelihoods) -> Float[Array, "R T"]:
    """This part's entropies of learned tokens, plus 1, at their places in an array of the whole batch; zero elsewhere.
    In a row, positions are in the order of `row_order`."""
    found = (completions.statistics_at(settings.temperature).entropies + 1) * completions.learned
    length = found.shape[1]
    rows = jnp.zeros((settings.global_batch_size, length), jnp.float32).at[completions.column("row")].set(found)
    whole = jnp.zeros((len(rows), length * axis_size("seq")), jnp.float32)
    return psum(jax.lax.dynamic_update_slice_in_dim(whole, rows, axis_index("seq") * length, 1), "seq")


def quantile(values: Float[Array, "R T"], share: float) -> Float[Array, ""]:
    """The quantile of those values that are above 0, between two of them by linear interpolation."""
    num = (values > 0).sum()
    ordered = jnp.sort(jnp.where(values > 0, values, jnp.inf).reshape(-1))
    place = share * jnp.maximum(num - 1, 0)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(num - 1, 0))
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def estimated_divergence(estimator: str, gap: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """An estimate of the divergence from the initial model (Schulman 2020, "Approximating KL Divergence"). `gap`: its
    log-probabilities less the policy's."""
    match estimator:
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
    """Sums over completions; metrics per learned token, the shares of clipped ratios per ratio. Extremes are those of
    tokens or, of clipped ratios, of completions' shares."""
    completions = seen.completions
    mask, lengths = completions.mask, completions.lengths[..., 0]
    of_sampler = jax.lax.stop_gradient(seen.of_sampler())
    metrics = metrics | {f"{name}/mean": values for name, values in of_sampler.items()}
    clipped = {name: where.astype(jnp.float32) for name, where in seen.clipped().items()}
    weighed = {"vespo/phi_seq_mean": seen.phi} if seen.settings.form.surrogate == "vespo" else {}
    per_token = (jnp.ones_like(lengths), (lengths * mask).sum())
    per_completion = (1 / jnp.maximum(lengths, 1), mask.sum())
    per_ratio = per_token if seen.settings.form.level == "token" else per_completion
    means: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    shares: dict[str, Array] = {}  # of each completion's tokens
    for values, (weight, count) in ((metrics, per_token), (clipped, per_ratio), (weighed, per_completion)):
        for name, value in jax.lax.stop_gradient(values).items():
            totals = completions.per_segment(value * completions.learned)[..., 0]
            means[name], counts[name] = (totals * weight * mask).sum(), count
            shares[name] = totals / jnp.maximum(lengths, 1)
    each = {
        name: (values, completions.learned * completions.per_token(mask[..., None]))
        for name, values in of_sampler.items()
    }
    each |= {name: (shares[name], mask * (lengths > 0)) for name in clipped}
    return Sums(
        (losses * mask).sum(),
        mask.sum(),
        metrics=means,
        counts=counts,
        largest={name: largest_of(*each[of]) for name, of in LARGEST.items() if of in each},
        smallest={name: smallest_of(*each[of]) for name, of in SMALLEST.items() if of in each},
    )
