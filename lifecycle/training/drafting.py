"""Settings of the stage that trains a drafter. Nothing here imports JAX."""

from pydantic import Field, field_validator

from lifecycle.core.numbers import Float32, Size
from lifecycle.model.config import DrafterConfig, ModelConfig
from lifecycle.model.counts import drafter_flops_per_token, forward_flops_per_token
from lifecycle.model.stacks import DRAFTER
from lifecycle.training.adapter import AdapterTrainingConfig
from lifecycle.training.config import TrainConfig


class EagleConfig(TrainConfig):
    """A drafter for the stage's initial weights, which stay as they are, on the assistant's tokens of chat rows
    (Li et al. 2025, "EAGLE-3")."""

    objective: str = "eagle"
    # How many tokens in a row it learns to draft: each step but the first sees the drafter's own features.
    draft_steps: int = Field(default=4, ge=1, le=16)
    decay: Float32 = Field(default=0.8, gt=0, le=1)  # of a step's weight in the loss, from each step to the next
    # Tokens that can be drafted, the most frequent ones of the stage's rows; None: all. The drafter's part of the
    # head's product falls with it. Published ones have 32,000 of 128,256.
    draft_vocab: Size | None = None
    d_ff: Size | None = None  # of the drafter's block; None: the model's

    @field_validator("adapter")
    @classmethod
    def _has_none(cls, adapter: AdapterTrainingConfig | None) -> None:
        if adapter is not None:
            raise ValueError("a drafter is trained by itself, beside weights that stay as they are; leave it out")

    def trained(self, model: ModelConfig) -> ModelConfig:
        """The model with its drafter."""
        return model.model_copy(update={"drafter": DrafterConfig(vocab_size=self.draft_vocab, d_ff=self.d_ff)})

    def flops_per_token(self, model: ModelConfig, count_causal_half: bool = True) -> float:
        """Matmul FLOPs of a step per token: the target's forward pass, and the drafter's steps with their gradients."""
        of_target = forward_flops_per_token(model.trunk, self.seq_len, count_causal_half)
        return of_target + 3 * self.draft_steps * drafter_flops_per_token(model)

    def frozen(self, model: ModelConfig) -> tuple[str, ...]:
        """The patterns of the parameters that stay as they are: all but the drafter's."""
        head = () if model.tie_embeddings else ("head",)
        vocabulary = () if self.draft_vocab is None else (f"{DRAFTER}.vocabulary",)
        return (*super().frozen(model), "embed", "norm", "blocks", *head, *vocabulary)
