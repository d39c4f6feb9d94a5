"""The inputs of formulas: likelihoods of the rows' tokens, or of a preference pair's answers.

On a mesh these are the values of this device's rows. A formula needs to know neither the mesh nor the model.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch, Float, Shaped
from lifecycle.kernels.cross_entropy import cross_entropy
from lifecycle.kernels.token_statistics import token_logprobs
from lifecycle.model.pipeline import own_rows


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

    @property
    def mask(self) -> Float[Array, "B T"]:
        """1 for targets that are learned, else 0."""
        return self.column("loss_mask")

    def nll(self, weights: Float[Array, "B T"], z_weight: float = 0.0) -> Float[Array, ""]:
        """The sum of each target's negative log-likelihood (nats) times its weight, which has no gradient. The cheapest
        method for a loss that is linear in the log-probabilities. `z_weight`: of the z-loss (`cross_entropy`)."""
        targets = self.column("targets")
        return cross_entropy(self.hidden, self.table, targets, weights, self.soft_cap, self.chunks, z_weight)

    def logprobs(self) -> Float[Array, "B T"]:
        """Each target's log-probability."""
        return token_logprobs(self.hidden, self.table, self.column("targets"), self.soft_cap, self.chunks)


@dataclass(frozen=True)
class PairLikelihoods(RowColumns):
    """The likelihoods of preference pairs' answers, chosen first; zeros for padding pairs."""

    logprobs: Float[Array, "B P 2"]
    lengths: Float[Array, "B P 2"]  # tokens of the answers

    @property
    def mask(self) -> Float[Array, "B P"]:
        """1 for a pair, 0 for padding."""
        return self.column("pair_mask")

    @property
    def ref_logprobs(self) -> Float[Array, "B P 2"]:
        """The answers' log-probabilities under the reference model."""
        return self.column("ref_logprobs")

    @property
    def mean_logprobs(self) -> Float[Array, "B P 2"]:
        """Log-probabilities per token."""
        return self.logprobs / jnp.maximum(self.lengths, 1)
