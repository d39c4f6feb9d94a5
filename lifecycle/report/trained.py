"""A run's training stages and the numbers of each, for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.report.blocks import Point
from lifecycle.report.rollouts_section import Rollouts, read_rollouts
from lifecycle.report.watched import WatchedStage, read_stage


@dataclass(frozen=True)
class TrainedStage:
    """A training stage, its artifact, and the evaluation of its weights (None: not evaluated).

    `start` is the training stage that it continues; None: it starts from fresh weights or a bundle. `is_exported`: the
    run's bundle has its weights.
    """

    name: str
    objective: str
    artifact: Artifact
    evaluation: Artifact | None = None
    start: str | None = None
    is_exported: bool = False


@dataclass(frozen=True)
class Training:
    """The numbers of a training stage. `curves`: by metric, its (step, value) points in order."""

    name: str
    objective: str
    start: str | None
    bundle_hash: str | None  # of the bundle that it starts from
    settings: Mapping[str, Any]
    stats: Mapping[str, Any]
    curves: Mapping[str, tuple[Point, ...]]
    session: Mapping[str, Any]  # the last one: its mesh, and how it computed and measured
    flops_per_token: float
    core_s: float  # of the steps alone
    watched: WatchedStage  # its log and time sheet as `lifecycle watch` shows them
    rollouts: Rollouts

    @property
    def num_devices(self) -> int:
        """Those of the last session, like the peak."""
        return prod(self.session["mesh"].values())

    @property
    def utilisation(self) -> float:
        """MFU: the share of the matmul peak, in the median logging interval."""
        peak = self.stats["matmul_peak_flops"] * self.num_devices
        return self.stats["tokens_per_s"] * self.flops_per_token / peak

    @property
    def peak(self) -> str:
        """What `utilisation` is a share of."""
        chip = self.stats.get("peak_chip")
        return "measured matmul rate" if chip is None else f"{chip}'s published peak"

    @property
    def flops_per_core_s(self) -> float | None:
        """FLOPs per core-second; None if the run is too short for the operating system's 10 ms clock."""
        return self.stats["tokens"] * self.flops_per_token / self.core_s if self.core_s else None


def read_training(stage: TrainedStage) -> Training:
    """The numbers of a stage, from its manifest and its log."""
    manifest = stage.artifact.manifest
    settings = manifest.config["train"]
    watched = read_stage(stage.name, stage.artifact.path)
    return Training(
        name=stage.name,
        objective=stage.objective,
        start=stage.start,
        bundle_hash=manifest.input_hashes.get("bundle"),
        settings=settings,
        stats=stage.artifact.stats,
        curves=_curves(watched.records),
        session=manifest.how[-1],
        flops_per_token=stage.artifact.stats["train_flops_per_token"],
        core_s=sum(record.get("cpu_s", 0.0) for record in watched.records),
        watched=watched,
        rollouts=read_rollouts(stage.artifact.path),
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Point, ...]]:
    curves: dict[str, list[Point]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                curves.setdefault(name, []).append((record["step"], value))
    return {name: tuple(points) for name, points in curves.items()}
