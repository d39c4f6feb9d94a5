"""An objective of another package, in one file: SimPO on preference pairs, without a reference model.

Importing it registers it; a run file then says `objective: simpo`.
"""

from collections.abc import Mapping

import jax
from pydantic import Field

from lifecycle.core.typing import Array
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.registry import ObjectiveKind, register
from lifecycle.training.objectives.sums import Sums, sums_over


class SimpoConfig(TrainConfig):
    """Simple preference optimisation on pairs."""

    objective: str = "simpo"
    beta: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=0.5, ge=0)  # by how much a chosen answer should be ahead


def simpo(settings: SimpoConfig, pairs: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The sigmoid loss of mean log-probabilities with a target margin (Meng et al. 2024, "SimPO", equation 6)."""
    margins = settings.beta * (pairs.mean_logprobs[..., 0] - pairs.mean_logprobs[..., 1])
    losses = -jax.nn.log_sigmoid(margins - settings.gamma)
    chosen_nll = (-pairs.logprobs[..., 0], pairs.lengths[..., 0])  # a mean over tokens, not over pairs
    return sums_over(pairs.mask, losses, {"margins": margins, "chosen_nll": chosen_nll})


register(ObjectiveKind("simpo", SimpoConfig, "pairs", f"{__name__}:simpo"))
