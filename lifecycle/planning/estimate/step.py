"""From a compiled program to the seconds of one run, with the derivation and how far to trust it.

The expected step is a simulation of the program's schedule (`compiled/timeline.py`): the compiler's cycles at the
chip's clock, kernels at an assumed share of the peak or at the HBM rate, collectives and copies to the host at the
stated rates where the schedule does not hide them. For GPUs, whose compiler estimates no cycles, they are a roofline's,
instruction by instruction (`compiled/roofline.py`). Rooflines of the whole program are separate figures that do not
change the step. The range runs from fast kernels
with everything hidden to slow kernels with nothing hidden. Nothing here was measured on a chip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.host import AXES as HOST_AXES
from lifecycle.planning.compiled.kernels import ASSUMED_SHARE, KernelWork
from lifecycle.planning.compiled.prefetch import prefetches
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.timeline import Memory, Timeline, Times
from lifecycle.planning.estimate.caveats import KERNEL_RANGE, caveats
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.topology import Topology


@dataclass(frozen=True)
class TrafficTotal:
    """Totals of collectives, or of host copies, of one kind over the same axes, per device and run of the program."""

    kind: str
    axes: tuple[str, ...]
    runs: int
    payload_bytes: int
    overlapped_bytes: int  # payload of those with work scheduled while they are in flight
    seconds: float  # on the network, if nothing else used it

    @property
    def is_to_host(self) -> bool:
        """Whether these bytes cross the link to the host instead of a network."""
        return self.axes == HOST_AXES


@dataclass(frozen=True)
class StepEstimate:
    """One run of the program, per device."""

    cycles: int
    product_cycles: int
    matmul_flops: float
    narrow_flops: float  # of it, of 8-bit values
    kernels: tuple[KernelWork, ...]
    hbm_traffic_bytes: float
    traffic: tuple[TrafficTotal, ...]
    compute_roofline_s: float
    hbm_roofline_s: float
    network_roofline_s: float
    host_roofline_s: float  # 0: no copies to or from the host
    times: Times
    step_s: float
    fastest_s: float
    slowest_s: float
    trust: tuple[str, ...]  # the estimate's assumptions and omissions, in sentences
    cycles_source: str = "the compiler's estimate"  # who says so

    @property
    def kernel_flops(self) -> float:
        """FLOPs of all kernel calls whose products are known."""
        return sum(k.total_flops for k in self.kernels)


def estimate_step(
    program: Program,
    collectives: Sequence[Collective],
    kernels: Sequence[KernelWork],
    network: Network,
    topology: Topology,
) -> StepEstimate:
    """The expected run of a program and everything it is derived from."""
    chip = topology.chip
    times = _played(program, collectives, kernels, network, chip, ASSUMED_SHARE)
    traffic = _totals(collectives, network)
    slow, fast = KERNEL_RANGE
    compute_s = program.cycles / chip.clock_hz
    network_s = sum(t.seconds for t in traffic if not t.is_to_host)
    host_s = sum(t.seconds for t in traffic if t.is_to_host)
    fastest_s = max(compute_s + _kernel_s(kernels, chip, fast), network_s, host_s)
    slowest_s = program.cost.slowest * compute_s + _kernel_s(kernels, chip, slow) + network_s + host_s
    return StepEstimate(
        cycles=program.cycles,
        product_cycles=program.product_cycles,
        matmul_flops=program.matmul_flops,
        narrow_flops=program.narrow_flops,
        kernels=tuple(kernels),
        hbm_traffic_bytes=program.hbm_bytes,
        traffic=traffic,
        compute_roofline_s=(program.matmul_flops - program.narrow_flops) / chip.bf16_flops
        + program.narrow_flops / (chip.int8_ops or chip.bf16_flops)
        + sum(k.calls * k.peak_s(chip) for k in kernels),
        hbm_roofline_s=program.hbm_bytes / chip.hbm_bytes_per_s,
        network_roofline_s=network_s,
        host_roofline_s=host_s,
        times=times,
        step_s=times.total_s,
        fastest_s=min(times.total_s, fastest_s),
        slowest_s=max(times.total_s, slowest_s),
        trust=caveats(program, collectives, kernels, times, topology),
        cycles_source=program.cost.source,
    )


def _played(
    program: Program,
    collectives: Sequence[Collective],
    kernels: Sequence[KernelWork],
    network: Network,
    chip: Chip,
    share: float,
) -> Times:
    """The times of the schedule with kernels at this share of the peak; kernels of the same name take their mean."""
    by_name = {name: [k for k in kernels if k.name == name] for name in {k.name for k in kernels}}
    num_calls = {name: sum(k.calls for k in those) for name, those in by_name.items()}
    means = {name: _kernel_s(those, chip, share) / num_calls[name] for name, those in by_name.items()}
    moved = {name: sum(k.calls * k.hbm_bytes for k in those) / num_calls[name] for name, those in by_name.items()}
    memory = Memory(chip.hbm_bytes_per_s, tuple(prefetches(program)), moved)
    return Timeline(program, collectives, chip.clock_hz, means, network.seconds, memory).run()


def _kernel_s(kernels: Sequence[KernelWork], chip: Chip, share: float) -> float:
    return sum(k.calls * k.seconds(chip, share) for k in kernels)


def _totals(collectives: Sequence[Collective], network: Network) -> tuple[TrafficTotal, ...]:
    """Collectives summed by kind and axes, the largest first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for collective in collectives:
        groups.setdefault((collective.kind, collective.axes), []).append(collective)
    rows = [
        TrafficTotal(
            kind=kind,
            axes=axes,
            runs=sum(c.runs for c in members),
            payload_bytes=sum(c.runs * c.payload_bytes for c in members),
            overlapped_bytes=sum(c.runs * c.payload_bytes for c in members if c.is_overlapped),
            seconds=sum(c.runs * network.seconds(c) for c in members),
        )
        for (kind, axes), members in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.payload_bytes))
