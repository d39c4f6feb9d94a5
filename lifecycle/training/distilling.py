"""Settings of the stage that learns a teacher's distributions. Nothing here imports JAX."""

from pydantic import Field

from lifecycle.core.numbers import Float32, Size
from lifecycle.training.config import TrainConfig


class DistillationConfig(TrainConfig):
    """Distillation on the assistant's tokens of chat rows: a divergence from the distributions of a teacher, which runs
    in the same steps and stays as it is."""

    objective: str = "distillation"
    teacher: str  # a training stage of the run, or a bundle's folder or address
    # Of the generalised Jensen-Shannon divergence. 0: forward KL, which covers all that the teacher may say; 1: reverse
    # KL, which leaves out what it would not.
    beta: Float32 = Field(default=0.5, ge=0, le=1)
    # Both models' logits are divided by it. Gradients are not multiplied by its square (as in TRL; Hinton et al. 2015
    # do that), so a higher one asks for a higher learning rate.
    temperature: Float32 = Field(default=1.0, ge=0.01, le=1000)
    # The ids below it are the same tokens in both vocabularies, which is checked; others are left out of both
    # distributions, and no row may have one. None: all ids are the same.
    shared_ids: Size | None = None
    sft_weight: Float32 = Field(default=0.0, ge=0)  # of the rows' own tokens' negative log-likelihood, which is added

    @property
    def held(self) -> tuple[str, ...]:
        """The teacher."""
        return ("teacher",)
