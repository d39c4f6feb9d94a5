"""Settings of an optimizer and of its learning rate. Nothing here imports JAX."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lifecycle.core.config import Section
from lifecycle.core.numbers import Decay, Float32, Size

MOST_STEPS = 10**9


class ScheduleConfig(Section):
    """Learning rate over the steps of a run, as a share of the peak."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    # wsd: the share of the run that decays, linearly; 1 is a linear schedule, 0 a stable one
    decay_share: float = Field(default=0.2, ge=0, le=1)
    final_share: float = Field(default=0.0, ge=0, le=1)
    # Its length, if the run goes on after this stage (`STAGE@STEP`); None: the stage's steps.
    steps: int | None = Field(default=None, gt=0, le=MOST_STEPS)

    # By kind, the settings that it has no use for.
    UNUSED: ClassVar[Mapping[str, frozenset[str]]] = {
        "wsd": frozenset(), "cosine": frozenset({"decay_share"}), "constant": frozenset({"decay_share", "final_share"}),
    }  # fmt: skip

    def used(self) -> dict[str, Any]:
        """The settings that decide the rates, JSON-ready. A run that goes on may change the kind, and its other
        settings stay, so those of another kind are no error."""
        return {name: value for name, value in self.plain().items() if name not in self.UNUSED[self.kind]}

    def length(self, steps: int) -> int:
        """The schedule's steps in a stage of `steps`."""
        return steps if self.steps is None else self.steps

    def decay_start(self, steps: int) -> int:
        """wsd: the last step at the peak, in a run of `steps`; the decay ends with the run."""
        warmup = min(self.warmup_steps, steps)
        decay = min(max(1, round(self.decay_share * steps)), max(1, steps - warmup))
        return max(warmup, steps - decay)

    def stable_steps(self, steps: int) -> int:
        """How many first steps of a run of `steps` have the same rates in a longer run."""
        steps = self.length(steps)
        if self.warmup_steps >= steps:  # the warm-up is shortened
            return 0
        if self.kind == "cosine":
            return min(self.warmup_steps + 1, steps)
        return steps if self.kind == "constant" else min(self.decay_start(steps) + 1, steps)


class OptimizerConfig(Section):
    """The optimizer and its settings."""

    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    learning_rate: Float32 = Field(default=1e-3, gt=0)
    # Multiples of the learning rate for some parameters, by canonical name as in `freeze`: {embed: 3, head: 0.5}. They
    # multiply the weight decay's step too. Where several match, the last counts.
    rates: dict[str, Annotated[Float32, Field(ge=0)]] = Field(default_factory=dict)
    # The width for which the learning rate was chosen: at another d_model each parameter's rate and initial size follow
    # (`training/transfer.py`). None: they are those of the model's own width.
    base_width: Size | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    weight_decay: Float32 = Field(default=0.0, ge=0)
    clip_norm: Float32 = Field(default=1.0, gt=0)
    beta1: Decay = 0.9  # Adam's
    beta2: Decay = 0.95
    momentum: Decay = 0.95  # Muon's
    # Muon: above 0, each output neuron's update is divided by the root of its running mean square (NorMuon: 0.95)
    neuron_beta2: Decay = 0.0
    # Above 0 a moving average of the weights is kept with this decay. It is what is measured, evaluated, exported and
    # gone on from; a stage that continues the run (`STAGE@STEP`) gets both.
    average_decay: Decay = 0.0
    # Of the trained parameters between steps. In bfloat16 their updates, in float32 like the optimizer's state, are
    # rounded stochastically (`training/rounding.py`).
    param_dtype: Literal["float32", "bfloat16"] = "float32"

    # Who uses a setting; with another optimizer it may only have its default. Muon leaves some parameters to Adam.
    USERS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "beta1": ("adamw", "muon"), "beta2": ("adamw", "muon"), "momentum": ("muon",), "neuron_beta2": ("muon",),
    }  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        for setting, users in self.USERS.items():
            value, default = getattr(self, setting), type(self).model_fields[setting].default
            if self.name not in users and value != default:
                raise ValueError(
                    f"{setting}={value} is a setting of {' and '.join(users)}, not of {self.name}; set "
                    f"name={users[0]}, or leave it out"
                )
        return self

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of a parameter and its part of the optimizer's state, which is in float32. For Muon an upper bound: it
        keeps one number for the layers' matrices, Adam's two for the rest. Adafactor's rows and columns are not
        counted."""
        states = {"adamw": 2, "muon": 2, "adafactor": 0}[self.name] + (self.average_decay > 0)
        return (2 if self.param_dtype == "bfloat16" else 4) + 4 * states
