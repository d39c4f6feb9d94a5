"""Direct preference optimisation and its relatives: the policy's gain over a reference, chosen against rejected.

Each loss is a function of `Scores` to a value per pair; a stage adds up several with weights. Names are TRL's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.preference import counts, in_units_of_pairs, pair_metrics
from lifecycle.training.objectives.sums import Sums, sums_over
from lifecycle.training.objectives.transport import delta_of, values_of_batch
from lifecycle.training.preference import DpoConfig

MOST_EXPONENT = 80.0  # exp stays finite in float32


@dataclass(frozen=True)
class Scores:
    """What the losses are functions of, `[B, P]`.

    `chosen` and `rejected` are log ratios of policy and reference, in nats; `chosen_score` and `rejected_score` what a
    divergence makes of them (with the reverse KL, themselves).
    """

    settings: DpoConfig
    pairs: GroupLikelihoods
    context: Mapping[str, Array]
    chosen: Float[Array, "B P"]
    rejected: Float[Array, "B P"]
    chosen_score: Float[Array, "B P"]
    rejected_score: Float[Array, "B P"]

    @property
    def margin(self) -> Float[Array, "B P"]:
        """The difference of scores, times beta."""
        return self.settings.beta * (self.chosen_score - self.rejected_score)

    @property
    def margin_per_token(self) -> Float[Array, "B P"]:
        """The difference of scores per token of each answer, without beta."""
        lengths = jnp.maximum(self.pairs.lengths, 1)
        return self.chosen_score / lengths[..., 0] - self.rejected_score / lengths[..., 1]

    def reward(self, log_ratio: Float[Array, "B P"]) -> Float[Array, "B P"]:
        """A log ratio, times beta."""
        return self.settings.beta * log_ratio


def dpo(settings: DpoConfig, pairs: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The weighted sum of the settings' losses, a mean over pairs."""
    alpha = settings.length_alpha
    logps, reference = pairs.logprobs_beyond(alpha), pairs.ref_logprobs(alpha)
    ratios = logps - reference
    scores = _scores(settings, ratios)
    seen = Scores(settings, pairs, context, ratios[..., 0], ratios[..., 1], scores[..., 0], scores[..., 1])
    losses = sum((weight * LOSSES[name](seen) for name, weight in settings.losses.items()), start=jnp.zeros(()))
    if settings.is_weighted:
        losses = losses * _policy_weights(pairs)
    return sums_over(pairs.mask, losses, pair_metrics(pairs, settings.beta * ratios, logps))


def of_batch(settings: DpoConfig, pairs: GroupLikelihoods) -> dict[str, Array]:
    """The context: counts for `sft`, and the values that are sorted over the batch for `aot`."""
    context = counts(settings, pairs) if "sft" in settings.losses else {}
    if settings.losses.keys() & {"aot", "aot_unpaired"}:
        alpha = settings.length_alpha
        logps, reference = pairs.logprobs_beyond(alpha), pairs.ref_logprobs(alpha)
        context |= values_of_batch(settings.global_batch_size, pairs, logps, reference)
    return context


def _scores(settings: DpoConfig, ratios: Float[Array, "B P 2"]) -> Float[Array, "B P 2"]:
    """`f'(ratio)` of the divergence's generator, up to a constant (Wang et al. 2023, "Beyond Reverse KL", table 1)."""
    match settings.divergence:
        case "forward_kl":
            return 1 - jnp.exp(-ratios)
        case "js_divergence":
            return math.log(2) + jax.nn.log_sigmoid(ratios)
        case "alpha_divergence" if abs(settings.divergence_alpha - 1) >= 1e-6:
            power = settings.divergence_alpha - 1
            return jnp.expm1(jnp.minimum(power * ratios, MOST_EXPONENT)) / power
        case _:  # the reverse KL, and the limit of the alpha divergence
            return ratios


def _policy_weights(pairs: GroupLikelihoods) -> Float[Array, "B P"]:
    """How likely a pair's answers are under the policy, per token and relative to its own samples' (Zhou et al. 2024,
    "WPO", equations 2 and 4)."""
    aligned = jax.lax.stop_gradient(pairs.statistics.logprobs) - pairs.statistics.log_squares
    means = pairs.per_segment(aligned * pairs.learned) / jnp.maximum(pairs.lengths, 1)
    return jnp.exp(means.sum(-1))


def _smoothed(x: Float[Array, "B P"], smoothing: float) -> Float[Array, "B P"]:
    return -(1 - smoothing) * jax.nn.log_sigmoid(x) - smoothing * jax.nn.log_sigmoid(-x)


def _sigmoid(of: Scores) -> Float[Array, "B P"]:
    """Rafailov et al. 2023, "Direct Preference Optimization", equation 7."""
    return -jax.nn.log_sigmoid(of.margin)


def _cdpo(of: Scores) -> Float[Array, "B P"]:
    """Mitchell 2023, "A note on DPO with noisy preferences", equation 3."""
    return _smoothed(of.margin, of.settings.label_smoothing)


def _robust(of: Scores) -> Float[Array, "B P"]:
    """Chowdhury et al. 2024, "Provably Robust DPO", equation 9."""
    smoothing = of.settings.label_smoothing
    clean, flipped = -jax.nn.log_sigmoid(of.margin), -jax.nn.log_sigmoid(-of.margin)
    return ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)


def _hinge(of: Scores) -> Float[Array, "B P"]:
    """Zhao et al. 2023, "SLiC-HF", equation 1, on DPO's margins (Liu et al. 2023, "RSO", section 3.2)."""
    return jax.nn.relu(1 - of.margin)


def _ipo(of: Scores) -> Float[Array, "B P"]:
    """Azar et al. 2023, "A General Theoretical Paradigm", equation 17, with log ratios per token."""
    return (of.margin_per_token - 1 / (2 * of.settings.beta)) ** 2


def _sigmoid_norm(of: Scores) -> Float[Array, "B P"]:
    """The sigmoid loss of log ratios per token (Lambert et al. 2024, "Tulu 3", section 5.1)."""
    return -jax.nn.log_sigmoid(of.settings.beta * of.margin_per_token)


def _exo_pair(of: Scores) -> Float[Array, "B P"]:
    """Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", equation 16."""
    smoothing, margin = of.settings.label_smoothing, of.margin
    win = jax.nn.sigmoid(margin) * (jax.nn.log_sigmoid(margin) - math.log1p(-smoothing))
    lose = jax.nn.sigmoid(-margin) * (jax.nn.log_sigmoid(-margin) - math.log(smoothing))
    return win + lose


def _nca_pair(of: Scores) -> Float[Array, "B P"]:
    """Chen et al. 2024, "Noise Contrastive Alignment", equation 14 for two answers."""
    chosen, rejected = of.reward(of.chosen), of.reward(of.rejected)
    both = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * both


def _bco_pair(of: Scores) -> Float[Array, "B P"]:
    """Jung et al. 2024, "Binary Classifier Optimization", equation 10, without the shift."""
    return -jax.nn.log_sigmoid(of.reward(of.chosen)) - jax.nn.log_sigmoid(-of.reward(of.rejected))


def _sppo_hard(of: Scores) -> Float[Array, "B P"]:
    """Wu et al. 2024, "Self-Play Preference Optimization", equation 4.7, with certain preferences."""
    half = 0.5 / of.settings.beta
    return (of.chosen - half) ** 2 + (of.rejected + half) ** 2


def _apo_zero(of: Scores) -> Float[Array, "B P"]:
    """D'Oosterlinck et al. 2024, "Anchored Preference Optimization", equation 7: for answers that are better than the
    model's."""
    return jax.nn.sigmoid(-of.reward(of.chosen)) + jax.nn.sigmoid(of.reward(of.rejected))


def _apo_down(of: Scores) -> Float[Array, "B P"]:
    """The same paper, equation 8: for answers that are worse than the model's."""
    chosen, rejected = of.reward(of.chosen), of.reward(of.rejected)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


def _aot(of: Scores) -> Float[Array, "B P"]:
    """Melnyk et al. 2024, "Distributional Preference Alignment via Optimal Transport", equation 9: the sorted gains of
    chosen over rejected, of the policy against the reference."""
    deltas = delta_of(of.pairs, of.context, of.chosen, of.rejected, is_paired=True)
    return _transported(of, deltas)


def _aot_unpaired(of: Scores) -> Float[Array, "B P"]:
    """The same paper, equation 8: the sorted log ratios of chosen answers against those of rejected ones."""
    deltas = delta_of(of.pairs, of.context, of.chosen, of.rejected, is_paired=False)
    return _transported(of, deltas)


def _transported(of: Scores, deltas: tuple[Float[Array, "B P"], ...]) -> Float[Array, "B P"]:
    """The first term has the loss's value; the gradients of all add up."""
    first, *others = (_smoothed(of.settings.beta * delta, of.settings.label_smoothing) for delta in deltas)
    return first + sum(other - jax.lax.stop_gradient(other) for other in others)


def _discopop(of: Scores) -> Float[Array, "B P"]:
    """Lu et al. 2024, "Discovering Preference Optimization Algorithms", equation 5."""
    share = jax.nn.sigmoid(of.margin / of.settings.discopop_tau)
    return -jax.nn.log_sigmoid(of.margin) * (1 - share) + jnp.exp(-of.margin) * share


def _sft(of: Scores) -> Float[Array, "B P"]:
    """The negative log-likelihood of the chosen answers, a mean over the batch's tokens."""
    return in_units_of_pairs(-of.pairs.logprobs[..., 0], of.context, "answer_tokens")


LOSSES: Mapping[str, Callable[[Scores], Float[Array, "B P"]]] = {
    "sigmoid": _sigmoid,
    "cdpo": _cdpo,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "sigmoid_norm": _sigmoid_norm,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "discopop": _discopop,
    "sft": _sft,
}
