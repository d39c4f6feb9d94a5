"""The inputs of formulas: likelihoods of the rows' tokens, or of the segments of groups.

On a mesh these are the values of this device's rows. A formula needs to know neither the mesh nor the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch, Float, Int, Shaped
from lifecycle.kernels.cross_entropy import cross_entropy, cross_entropy_and_metrics
from lifecycle.kernels.divergence import Divergence, Predictions, divergence
from lifecycle.kernels.kept_logits import kept_logprobs, logits_of
from lifecycle.kernels.token_statistics import TokenStatistics, token_statistics
from lifecycle.model.pipeline import own_rows
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, psum, psum_identity_grad
from lifecycle.training.group_rows import OTHER


@dataclass(frozen=True)
class RowColumns:
    """A batch's arrays, restricted to the rows whose likelihoods this device computes."""

    batch: Batch

    def column(self, name: str) -> Shaped[Array, "b ..."]:
        """The array `name` of these rows."""
        return own_rows(self.batch[name])


@dataclass(frozen=True)
class TokenLikelihoods(RowColumns):
    """The likelihood of every target, computed on demand, so that logits are never stored."""

    hidden: Float[Array, "B t D"]
    table: Float[Array, "V columns"]  # the output projection, as the parameters have it
    soft_cap: float | None
    chunks: int  # of the vocabulary, as in `cross_entropy`
    score: Float[Array, " columns"] | None = None  # of a model with rewards
    teacher: "TokenLikelihoods | None" = None  # of the same rows, for an objective that has one

    @property
    def mask(self) -> Float[Array, "B T"]:
        """1 for targets that are learned, else 0."""
        return self.column("loss_mask")

    def nll(self, weights: Float[Array, "B T"], z_weight: float = 0.0) -> Float[Array, ""]:
        """The sum of each target's negative log-likelihood (nats) times its weight, which has no gradient. The cheapest
        method for a loss that is linear in the log-probabilities. `z_weight`: of the z-loss (`cross_entropy`)."""
        targets = self.column("targets")
        return cross_entropy(self.hidden, self.table, targets, weights, self.soft_cap, self.chunks, z_weight)

    def scores(self) -> Float[Array, "B T"]:
        """Each position's reward: its hidden state's product with the score, in float32."""
        assert self.score is not None, "this model has no score"
        weights = all_gather(self.score.astype(jnp.float32), "embed", 0)
        own = jnp.einsum("btd,d->bt", self.hidden.astype(jnp.float32), weights, precision="highest")
        # a sum of rows that have one device's positions each: a gather's gradient would count all devices' uses
        among = jnp.zeros((own.shape[0], own.shape[1] * axis_size("norm_seq")), own.dtype)
        begin = axis_index("norm_seq") * own.shape[1]
        return psum_identity_grad(jax.lax.dynamic_update_slice_in_dim(among, own, begin, 1), "norm_seq")

    def nll_and_metrics(self, z_weight: float = 0.0) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """`nll` of the learned targets, and without gradients the sums of their distributions' entropies (nats) and of
        those that are among the likeliest ids."""
        targets, weights = self.column("targets"), self.mask
        settings = self.soft_cap, self.chunks, z_weight
        return cross_entropy_and_metrics(self.hidden, self.table, targets, weights, *settings)

    def divergence(self, of: Divergence) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The sum over learned targets of the distributions' divergences from the teacher's, and without a gradient
        that of their entropies, in nats."""
        assert self.teacher is not None, "this objective has no teacher"
        student, teacher = (Predictions(side.hidden, side.table, side.soft_cap) for side in (self, self.teacher))
        return divergence(student, teacher, self.mask, of, self.chunks)

    def statistics(self, temperature: float = 1.0, wanted: Float[Array, "B T"] | None = None) -> TokenStatistics:
        """The log-probability of each target that is learned, or `wanted`, and what else is known of its distribution;
        zero for all others, which cost nothing."""
        targets, is_wanted = self.column("targets"), (self.mask if wanted is None else wanted) > 0
        return token_statistics(self.hidden, self.table, targets, self.soft_cap, self.chunks, temperature, is_wanted)

    def logprobs_among(self, kept: Int[Array, "B T kept"], temperature: float) -> Float[Array, "B T"]:
        """The log-probability of each target among the ids `kept` of its position, at a temperature."""
        settings = self.soft_cap, self.chunks, temperature
        return kept_logprobs(self.hidden, self.table, self.column("targets"), kept, *settings)

    def logprobs_of(
        self, ids: Int[Array, "B T kept"], temperature: float
    ) -> tuple[Float[Array, "B T kept"], Float[Array, "B T"]]:
        """The log-probabilities of each learned target's `ids` at a temperature, and without a gradient the entropies
        of the distributions; anything for ids that are none, and for other targets."""
        targets = self.column("targets")[..., None]
        *others, target = jnp.split(self.logits_of(jnp.concatenate([ids, targets], -1)), [ids.shape[-1]], axis=-1)
        known = self.statistics(temperature)  # of the targets, whose logits give the normaliser
        return (others[0] - target) / temperature + known.logprobs[..., None], jax.lax.stop_gradient(known.entropies)

    def logits_of(self, ids: Int[Array, "B T kept"]) -> Float[Array, "B T kept"]:
        """The logits of each position's `ids`; anything for ids that are none."""
        return logits_of(self.hidden, self.table, ids, self.soft_cap, self.chunks)


@dataclass(frozen=True)
class GroupLikelihoods(RowColumns):
    """The likelihoods of groups' segments, for rows of `training/group_rows.py`: of preference pairs, chosen first.

    `forward` runs the model on a batch: once, if a formula asks for what it gives; `reference` runs the reference, of a
    stage whose rows do not carry its log-probabilities.
    """

    size: int  # `k`: the segments of a group
    forward: Callable[[Batch], TokenLikelihoods]
    reference: Callable[[Batch], TokenLikelihoods] | None = None
    wanted: str | None = None  # the column of targets that have statistics; None: of those that are learned

    @cached_property
    def tokens(self) -> TokenLikelihoods:
        """The likelihoods of the rows' tokens."""
        return self.forward(self.batch)

    @cached_property
    def statistics(self) -> TokenStatistics:
        """Of each target that is learned, `[B, T]`; zero for others."""
        return self.statistics_at(1.0)

    def statistics_at(self, temperature: float) -> TokenStatistics:
        """The same of the distributions at a temperature."""
        if temperature not in self._found:
            wanted = None if self.wanted is None else self.column(self.wanted)
            self._found[temperature] = self.tokens.statistics(temperature, wanted)
        return self._found[temperature]

    @cached_property
    def _found(self) -> dict[float, TokenStatistics]:
        return {}

    @property
    def mask(self) -> Float[Array, "B P"]:
        """1 for a group, 0 for padding."""
        return self.column("group_mask")

    @property
    def learned(self) -> Float[Array, "B T"]:
        """1 for targets that are learned, else 0."""
        return self.column("loss_mask")

    def per_segment(self, values: Float[Array, "B T"]) -> Float[Array, "B P k"]:
        """The sum over each segment's positions; zero for groups that are padding. For what is a segment's own: a
        gradient of a value that goes back to positions needs `segment_sum_at_tokens`."""
        return psum_identity_grad(self._own_sums(values), "seq")

    def segment_sum_at_tokens(self, values: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """At each position the sum over its segment."""
        return self.per_token(psum(self._own_sums(values), "seq"))  # each device uses it at other positions

    def _own_sums(self, values: Float[Array, "B T"]) -> Float[Array, "B P k"]:
        rows, groups = self.mask.shape
        ids, num = self.column("segment_ids"), groups * self.size + 1
        totals = jax.vmap(lambda v, where: jax.ops.segment_sum(v, where, num))(values, ids)
        return totals[:, 1:].reshape(rows, groups, self.size)

    def per_token(self, values: Float[Array, "B P k"]) -> Float[Array, "B T"]:
        """Each position's value: that of its segment; 0 in padding."""
        flat = jnp.pad(values.reshape(len(values), -1), ((0, 0), (1, 0)))
        return jnp.take_along_axis(flat, self.column("segment_ids"), axis=1)

    @cached_property
    def logprobs(self) -> Float[Array, "B P k"]:
        """The log-probability of each segment's learned targets, in nats."""
        return self.per_segment(self.statistics.logprobs * self.learned)

    @cached_property
    def lengths(self) -> Float[Array, "B P k"]:
        """How many learned targets each segment has."""
        return self.per_segment(self.learned)

    def logprobs_beyond(self, alpha: float | None) -> Float[Array, "B P k"]:
        """`logprobs`, in which the tokens beyond the length of the group's shortest segment weigh `alpha` (Liu et al.
        2024, "Length Desensitization in Direct Preference Optimization", equation 9); None: 1."""
        if alpha is None:
            return self.logprobs
        shortest = jnp.broadcast_to(self.lengths.min(-1, keepdims=True), self.lengths.shape)
        is_shared = self.column("answer_positions") <= self.per_token(shortest)
        return self.per_segment(self.statistics.logprobs * self.learned * jnp.where(is_shared, 1.0, alpha))

    @property
    def mean_logprobs(self) -> Float[Array, "B P k"]:
        """Log-probabilities per learned target."""
        return self.logprobs / jnp.maximum(self.lengths, 1)

    def ref_logprobs(self, alpha: float | None = None) -> Float[Array, "B P k"]:
        """The segments' log-probabilities under the reference model, weighed as by `logprobs_beyond`: a column is."""
        if self.reference is None:
            return self.column("ref_logprobs")
        return replace(self, forward=self.reference, reference=None).logprobs_beyond(alpha)

    @property
    def others(self) -> "GroupLikelihoods":
        """The same for the sequences that are measured beside the segments."""
        of_others = {name.removeprefix(OTHER): column for name, column in self.batch.items() if name.startswith(OTHER)}
        return replace(self, batch={**self.batch, **of_others})
