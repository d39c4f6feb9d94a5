"""Settings of checkpoints: when they are written, and which of them stay."""

from typing import Literal

from pydantic import Field, model_validator

from lifecycle.core.config import Section


class LocalCheckpointConfig(Section):
    """Checkpoints on each host's own disk, between the durable ones: `training/checkpoints/local.py`."""

    folder: str = Field(min_length=1)  # on a disk, or in the memory, of the host; several runs may share it
    every: int = Field(default=50, gt=0)  # steps
    every_minutes: float | None = Field(default=None, gt=0)  # also; as the durable ones'


class CheckpointConfig(Section):
    """When the training state is saved, and which of its checkpoints stay: the last `keep`, every one whose step is a
    multiple of `keep_every`, and the one with the best held-out metric."""

    every: int = Field(default=200, gt=0)  # steps
    every_minutes: float | None = Field(default=None, gt=0)  # also; looked at when steps are logged
    keep: int = Field(default=2, gt=0)
    keep_every: int | None = Field(default=None, gt=0)  # steps, a multiple of `every`
    # A metric of held-out data, or TASK/METRIC; a checkpoint at whose step it was not measured does not count.
    best: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"
    # How long training goes on while saves fail, for example on a full disk; each failure is told, and tried again.
    max_unsaved_minutes: float = Field(default=60.0, ge=0)
    # A save that takes longer has failed: where hosts share no folder, each uploads its part in this time.
    max_save_minutes: float = Field(default=20.0, gt=0, le=10_000)
    local: LocalCheckpointConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "CheckpointConfig":
        if self.keep_every is not None and self.keep_every % self.every:
            raise ValueError(
                f"keep_every={self.keep_every} is not a multiple of every={self.every}: those steps are not saved"
            )
        return self
