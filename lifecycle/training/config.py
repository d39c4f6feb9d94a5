"""Settings of the training stages. No import here needs JAX's libraries, so that reading a config is quick."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lifecycle.core.config import Section
from lifecycle.model.config import Remat


class ScheduleConfig(Section):
    """Learning rate over the steps of a run, as a share of the peak."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = Field(default=0, ge=0)
    decay_share: float = Field(default=0.2, ge=0, le=1)  # wsd: the last part of the run, linear
    final_share: float = Field(default=0.0, ge=0, le=1)


class OptimizerConfig(Section):
    """What updates the weights."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # Muon's


class TrainConfig(Section):
    """What every training stage has. `global_batch_size` counts rows of `seq_len` positions over all hosts."""

    steps: int = Field(gt=0)
    # A bundle whose weights the stage starts from, in place of the stage before's (pre-training: of fresh ones).
    init: Path | None = None
    seq_len: int = Field(gt=1)
    global_batch_size: int = Field(gt=0)
    grad_accum: int = Field(default=1, gt=0)
    # What of a layer waits in memory for the backward pass: None: everything; {}: its input only; or by name.
    remat: Remat | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    eval_every: int = Field(default=200, gt=0)  # steps between measurements on held-out data
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=200, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.global_batch_size % self.grad_accum:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of grad_accum={self.grad_accum}"
            )
        schedule = self.optimizer.schedule
        if schedule.kind != "constant" and schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.schedule.warmup_steps={schedule.warmup_steps} leaves no step of steps={self.steps} for the "
                f"{schedule.kind} schedule after the warm-up; set it below {self.steps}, or schedule.kind=constant"
            )
        return self


class LanguageConfig(TrainConfig):
    """Next-token prediction, on whatever rows."""

    # Parts in which the loss goes through the vocabulary, twice; 1: once, by blocks of positions. Saves memory.
    loss_chunks: int = Field(default=1, gt=0)


class PretrainConfig(LanguageConfig):
    """Next-token prediction on the token shards."""

    # Held-out text measured on the way; the evaluation stage uses all of it.
    eval_bytes: int = Field(default=100_000, gt=0)


class SftConfig(LanguageConfig):
    """Next-token prediction on the assistant's tokens of chat rows, with a share of pre-training rows mixed in."""

    replay_share: float = Field(default=0.0, ge=0, lt=1)


class PreferConfig(TrainConfig):
    """Preference tuning on pairs."""

    objective: Literal["dpo", "orpo"] = "dpo"
    # DPO: how near the policy stays to the reference. ORPO: the weight of the odds ratio.
    beta: float = Field(default=0.1, gt=0)
    # DPO: the weight of the chosen answers' own loss.
    sft_weight: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _weight_is_used(self) -> "PreferConfig":
        if self.objective == "orpo" and self.sft_weight:
            raise ValueError("sft_weight belongs to dpo: orpo's loss already holds the chosen answers' own")
        return self
