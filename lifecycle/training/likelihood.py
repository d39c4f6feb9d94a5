"""Settings of the objectives that learn tokens by their likelihood: pre-training and supervised fine-tuning."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lifecycle.core.numbers import LARGEST_INT32, Float32
from lifecycle.training.config import PERIOD, TrainConfig
from lifecycle.training.mixture_setting import MixtureSetting


class NextTokenConfig(TrainConfig):
    """Next-token prediction on the token shards. A model with a `depth` decides steps and batch too
    (`training/dial.py`)."""

    fillable: ClassVar[frozenset[str]] = frozenset({"steps", "global_batch_size"})
    objective: str = "next_token"
    # Shares of the rows by source, any positive numbers, or a file of them; `size` or {temperature: T}: by the tokens
    # of sources. Each source goes through epochs of its own. Empty: all documents as they are.
    mixture: MixtureSetting = Field(default_factory=dict)
    # Bytes of held-out text measured during training, the same amount of each source; the evaluation stage uses all.
    eval_bytes: int = Field(default=100_000, gt=0)
    z_weight: Float32 = Field(default=0.0, ge=0)  # of the z-loss, log(Z)^2 per token (PaLM: 1e-4); part of the loss
    # Of the loss of the model's prediction modules (`model.num_mtp_modules`), which is not part of the logged loss;
    # DeepSeek-V3, section 4.2: 0.3, later 0.1. With 0 they do not run, and stay as they are.
    mtp_weight: Float32 = Field(default=0.0, ge=0)


class SftConfig(TrainConfig):
    """Next-token prediction on the assistant's tokens of chat rows, with a share of pre-training rows mixed in."""

    objective: str = "sft"
    # nll: the negative log-likelihood. dft: each token's is multiplied by its probability, which has no gradient.
    loss: Literal["nll", "dft"] = "nll"
    # best_fit: rows are filled with whole examples. wrapped: examples are put one behind the other, and cut where a row
    # ends; none is too long, and what is cut goes on in another row, without what came before.
    packing: Literal["best_fit", "wrapped"] = "best_fit"
    # NEFTune: uniform noise on the embeddings in steps, up to this over sqrt(tokens of the segment * d_model); the
    # paper: 5, 10 or 15.
    neftune_noise_alpha: Float32 | None = Field(default=None, gt=0)
    replay_share: float = Field(default=0.0, ge=0, lt=1)  # of the rows
    z_weight: Float32 = Field(default=0.0, ge=0)  # as in pre-training
    mtp_weight: Float32 = Field(default=0.0, ge=0)  # as in pre-training

    @property
    def noise_alpha(self) -> float | None:
        """How much noise steps add to embeddings."""
        return self.neftune_noise_alpha

    def epoch_rows(self, units: int, rows: int) -> float:
        """As `TrainConfig.epoch_rows`, among the replayed ones."""
        return rows / (1 - self.replay_share)

    @property
    def wraps(self) -> bool:
        """Whether rows are cut where a batch's row ends."""
        return self.packing == "wrapped"

    @property
    def longest_row(self) -> int:
        """The most tokens that a row of the stage's files may have."""
        return LARGEST_INT32 if self.wraps else super().longest_row

    @model_validator(mode="after")
    def _check_packing(self) -> "SftConfig":
        if self.wraps and self.truncation != "drop":
            raise ValueError(f"truncation={self.truncation}: packing=wrapped cuts rows of any length; leave it out")
        return self

    @model_validator(mode="after")
    def _check_z(self) -> "SftConfig":
        if self.loss == "dft" and self.z_weight:
            raise ValueError("z_weight is a setting of loss=nll; leave it out")
        return self

    @field_validator("replay_share")
    @classmethod
    def _has_rows(cls, share: float) -> float:
        if share and not 1 / PERIOD <= share <= 1 - 1 / PERIOD:
            raise ValueError(
                f"of {PERIOD} rows, in which shares are rounded, it is less than one, or leaves less than one; choose "
                f"0, or a share from {1 / PERIOD:.2g} to {1 - 1 / PERIOD:.4g}"
            )
        return share
