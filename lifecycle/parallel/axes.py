"""The mesh's axes, the table from logical axis names to them, and the config of their sizes.

Mesh axes, in this order, each of size >= 1: `replica` (complete replicas, across slices), `stage` (pipeline), `fsdp`,
`expert`, `context`, `tensor`. Parameters and activations carry logical names; `RULES` maps each to mesh axes. A size
that does not divide is an error when the config is read, never a silent replication. Nothing here imports JAX.
"""

import math

from pydantic import Field

from lifecycle.core.config import ConfigError, Section

AXES = ("replica", "stage", "fsdp", "expert", "context", "tensor")

# A parameter's dimension and an activation's dimension have different names, so one table serves both. Parameters are
# sharded over all data axes (Rajbhandari et al. 2020, "ZeRO", stage 3); between the layers' products a row's positions
# are sharded over `tensor` too (Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4.2.2).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "fsdp", "expert"),  # rows of a batch
    "seq": ("context",),  # positions of a row, inside attention and feed-forward
    "norm_seq": ("tensor",),  # positions of a row, between them
    "loss_rows": ("replica", "fsdp", "expert", "stage"),  # rows whose loss a device computes
    "vocab": ("tensor",),
    "embed": ("fsdp", "expert", "context"),  # d_model of a parameter
    "hidden": ("fsdp", "expert", "context"),  # d_model of a few rows' activations: `parallel/collectives.py:hidden_cut`
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),  # d_model of an expert's parameter
    "layers": ("stage",),
    "modules": (),  # prediction modules: each stage of a pipeline has all of them, for its rows of the loss
}


class MeshConfig(Section):
    """Sizes of the mesh axes; their product is the number of devices used."""

    replica: int = Field(default=1, ge=1)
    stage: int = Field(default=1, ge=1)
    fsdp: int = Field(default=1, ge=1)
    expert: int = Field(default=1, ge=1)
    context: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def for_inference(self) -> "MeshConfig":
        """The same devices for prefill and decode, which have no `stage` or `context`: those devices join `fsdp`."""
        fsdp = self.stage * self.fsdp * self.context
        return MeshConfig(replica=self.replica, fsdp=fsdp, expert=self.expert, tensor=self.tensor)


def require_divides(mesh: MeshConfig, logical: str, size: int, what: str) -> None:
    """Raises `ConfigError` unless the mesh axes behind `logical` divide `size`; names the axis and the nearest fit."""
    sizes = {axis: getattr(mesh, axis) for axis in RULES[logical] if getattr(mesh, axis) > 1}
    axis_size = math.prod(sizes.values())
    if size % axis_size == 0:
        return
    for axis, asked in reversed(sizes.items()):
        fitting = [n for n in range(1, size + 1) if size % (n * axis_size // asked) == 0]
        if fitting:
            nearest = min(fitting, key=lambda n: abs(n - asked))
            raise ConfigError(f"mesh.{axis}={asked} does not divide {what}={size}; nearest: mesh.{axis}={nearest}")
    shape = " x ".join(f"mesh.{axis}={asked}" for axis, asked in sizes.items())
    raise ConfigError(f"{shape} does not divide {what}={size}, and changing one of them is not enough; change both")


def require_cuts_rows(mesh: MeshConfig, seq_len: int, what: str) -> None:
    """Raises `ConfigError` unless `context` and `tensor` divide a row's positions: into two chunks per context device,
    so that each has the same causal work, and over `tensor` between a layer's products."""
    unit = (2 * mesh.context if mesh.context > 1 else 1) * mesh.tensor
    if seq_len % unit:
        nearest = max(unit, round(seq_len / unit) * unit)
        raise ConfigError(
            f"mesh.context={mesh.context} and mesh.tensor={mesh.tensor} need {what} to be a multiple of {unit}; "
            f"{what}={seq_len} is not; nearest: {nearest}"
        )


def require_replicas_per_slice(replica: int, num_slices: int, what: str) -> None:
    """Raises `ConfigError` unless each slice of `what` holds complete replicas of the model."""
    if replica % num_slices:
        raise ConfigError(
            f"mesh.replica={replica} is not a multiple of the {num_slices} slices of {what}: each slice holds complete "
            f"replicas; set mesh.replica={num_slices}"
        )
