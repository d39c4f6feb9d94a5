"""Process reward models: whether each step of an answer is right, from the hidden state of its last token."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums, sums_over
from lifecycle.training.preference import ProcessRewardModelConfig
from lifecycle.training.step_rows import STEP_LABELS


def process_reward_model(
    settings: ProcessRewardModelConfig, tokens: TokenLikelihoods, context: Mapping[str, Array]
) -> Sums:
    """The logistic loss per step (Lightman et al. 2023, "Let's Verify Step by Step", section 2.4; Uesato et al. 2022,
    "Solving math word problems with process- and outcome-based feedback", section 2.5). A classifier of two classes, as
    TRL trains one, has the same loss and gradients in the difference of its two rows, which is the score here. Logged:
    `accuracy` (a score of 0 is no hit) and `mean_reward`, per step."""
    scores, sign = tokens.scores(), tokens.column(STEP_LABELS)
    return sums_over(
        jnp.abs(sign),
        -jax.nn.log_sigmoid(sign * scores),
        {"accuracy": (sign * scores > 0).astype(jnp.float32), "mean_reward": jax.lax.stop_gradient(scores)},
    )
