"""The configuration of an adapter that is trained beside frozen weights. Nothing here imports JAX."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lifecycle.core.config import Section
from lifecycle.core.numbers import LARGEST_FLOAT32, SMALLEST_FLOAT32, Float32, Size

# The matrices of attention and of feed-forwards that every token uses, by the last part of their canonical names;
# latent attention has the last three.
AdapterTarget = Literal["q", "k", "v", "o", "gate", "up", "down", "q_down", "q_up", "kv_down"]


class AdapterConfig(Section):
    """Low-rank matrices that are trained beside frozen ones (Hu et al. 2021, "LoRA"): `model/lora.py`."""

    rank: Size = 16
    alpha: Float32 = Field(default=32.0, gt=0)
    targets: tuple[AdapterTarget, ...] | None = Field(default=None, min_length=1)  # None: all that can have one
    # dora: each column of the sum has a trained length (Liu et al. 2024, "DoRA")
    kind: Literal["lora", "dora"] = "lora"
    # The product is multiplied by alpha / rank, or by alpha / sqrt(rank) (Kalajdzievski 2023, "rsLoRA").
    scaling: Literal["standard", "rslora"] = "standard"
    # How the frozen layers' matrices are held. None: in the compute dtype. nf4: in 4 bits (Dettmers et al. 2023,
    # "QLoRA"): `kernels/nf4.py`.
    base: Literal["nf4"] | None = None

    @field_validator("targets")
    @classmethod
    def _differ(cls, targets: tuple[AdapterTarget, ...] | None) -> tuple[AdapterTarget, ...] | None:
        if doubled := next((name for name in targets or () if (targets or ()).count(name) > 1), None):
            raise ValueError(f"{doubled!r} is listed twice; list it once")
        return targets

    @model_validator(mode="after")
    def _is_in_float32(self) -> "AdapterConfig":
        if not SMALLEST_FLOAT32 <= self.scale <= LARGEST_FLOAT32:
            raise ValueError(
                f"alpha={self.alpha:g} and rank={self.rank} scale the product by {self.scale:g}, which is 0 or "
                "infinite in float32; choose others"
            )
        return self

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (self.rank if self.scaling == "standard" else self.rank**0.5)
