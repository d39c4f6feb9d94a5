"""From a compiled program to seconds, tokens, days and money, with its derivation and how far to trust it.

The expected step is the program's schedule played through (`timeline.py`): the compiler's cycles at the chip's clock,
kernels at an assumed share of the peak or the memory's rate, collectives and copies to the host at the stated rates
where the schedule does not hide them. Beside it stand rooflines, each a figure of its own that changes nothing of the
step (memory traffic is an approximate count, the compiler's cycles know of memory), and a range: everything hidden and
fast kernels, nothing hidden and slow ones. Nothing here was measured on a chip.

MFU is model FLOPs over what the devices could do in the same time. Causal attention counts half, what a query really
sees (the stricter convention); beside it the older one, which counts the whole square (Chowdhery et al. 2022, appendix
B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.host import AXES as HOST_AXES
from lifecycle.planning.compiled.kernels import ASSUMED_SHARE, KernelWork
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.timeline import Timeline, Times
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.estimate.trust import KERNEL_RANGE, trust
from lifecycle.planning.topology import Topology


@dataclass(frozen=True)
class Work:
    """What the model itself needs for one run of the program, on all devices together."""

    tokens: int
    flops: float  # causal attention counted half, experts that a token uses
    flops_full_attention: float
    runs: int  # of the program, in the whole training run


@dataclass(frozen=True)
class Traffic:
    """Collectives, or copies to or from the host, of one kind over the same axes, per device and run of the program."""

    kind: str
    axes: tuple[str, ...]
    runs: int
    payload_bytes: int
    overlapped_bytes: int  # of collectives that have something scheduled beside them
    seconds: float  # of the network, if nothing else used it

    @property
    def is_to_host(self) -> bool:
        return self.axes == HOST_AXES


@dataclass(frozen=True)
class Estimate:
    """One run of the program, per device."""

    cycles: int
    product_cycles: int
    matmul_flops: float
    kernels: tuple[KernelWork, ...]
    hbm_traffic_bytes: float
    traffic: tuple[Traffic, ...]
    compute_roofline_s: float
    hbm_roofline_s: float
    network_roofline_s: float
    host_roofline_s: float  # 0: nothing goes to the host
    times: Times
    step_s: float
    fastest_s: float
    slowest_s: float
    trust: tuple[str, ...]

    @property
    def kernel_flops(self) -> float:
        return sum(k.total_flops for k in self.kernels)


@dataclass(frozen=True)
class Budget:
    """What an estimated step means for a run."""

    model_flops: float  # per device and step
    recompute_overhead: float  # products of the program and its kernels over the model's own, minus one
    tokens_per_s: float
    tokens_per_s_per_chip: float
    mfu: float
    mfu_full_attention: float
    tokens: int
    days: float
    money: float | None  # USD; None: no price known


@dataclass(frozen=True)
class InferenceBudget:
    """What one run of the engine's prefill or decode means for those who ask."""

    model_flops: float  # per device and run
    tokens_per_run: int  # of a prompt's chunk; of decoding, one for each slot
    tokens_per_s: float
    ms_per_run: float  # of decoding: from one of a slot's tokens to the next
    mfu: float
    usd_per_million_tokens: float | None  # with every slot busy; None: no price known


def estimate(
    program: Program,
    found: Sequence[Collective],
    kernels: Sequence[KernelWork],
    network: Network,
    topology: Topology,
) -> Estimate:
    """The expected run of a TPU program and everything it is derived from."""
    chip = topology.chip
    assert chip.clock_hz is not None, f"{chip.name} has no cycle estimates"
    times = _played(program, found, kernels, network, chip, ASSUMED_SHARE)
    traffic = _traffic(found, network)
    kernel_flops = sum(k.total_flops for k in kernels)
    slow, fast = KERNEL_RANGE
    compute_s = program.cycles / chip.clock_hz
    network_s = sum(t.seconds for t in traffic if not t.is_to_host)
    host_s = sum(t.seconds for t in traffic if t.is_to_host)
    fastest_s = max(compute_s + _kernel_s(kernels, chip, fast), network_s, host_s)
    slowest_s = compute_s + _kernel_s(kernels, chip, slow) + network_s + host_s
    return Estimate(
        cycles=program.cycles,
        product_cycles=program.product_cycles,
        matmul_flops=program.matmul_flops,
        kernels=tuple(kernels),
        hbm_traffic_bytes=program.hbm_bytes,
        traffic=traffic,
        compute_roofline_s=(program.matmul_flops + kernel_flops) / chip.bf16_flops,
        hbm_roofline_s=program.hbm_bytes / chip.hbm_bytes_per_s,
        network_roofline_s=network_s,
        times=times,
        step_s=times.total_s,
        fastest_s=min(times.total_s, fastest_s),
        slowest_s=max(times.total_s, slowest_s),
        trust=trust(program, found, kernels, times, topology),
        host_roofline_s=host_s,
    )


def budget(found: Estimate, topology: Topology, work: Work) -> Budget:
    """A run of `work.runs` steps like this one."""
    chip = topology.chip
    peak = topology.num_devices * chip.bf16_flops
    hours = work.runs * found.step_s / 3600
    done = (found.matmul_flops + found.kernel_flops) * topology.num_devices
    return Budget(
        model_flops=work.flops / topology.num_devices,
        recompute_overhead=done / work.flops - 1,
        tokens_per_s=work.tokens / found.step_s,
        tokens_per_s_per_chip=work.tokens / found.step_s / topology.num_chips,
        mfu=work.flops / found.step_s / peak,
        mfu_full_attention=work.flops_full_attention / found.step_s / peak,
        tokens=work.tokens * work.runs,
        days=hours / 24,
        money=None if chip.price_per_hour is None else hours * topology.num_chips * chip.price_per_hour,
    )


def inference_budget(found: Estimate, topology: Topology, work: Work) -> InferenceBudget:
    """Runs like this one, without pause and with every slot busy; the host's part of the engine is not in it. The
    engine's programs run on one device, whatever the chip has; it is that device's share of the chip that costs."""
    chip = topology.chip
    tokens_per_s = work.tokens / found.step_s
    price = None if chip.price_per_hour is None else chip.price_per_hour / chip.devices_per_chip / 3600
    return InferenceBudget(
        model_flops=work.flops,
        tokens_per_run=work.tokens,
        tokens_per_s=tokens_per_s,
        ms_per_run=1e3 * found.step_s,
        mfu=work.flops / found.step_s / chip.bf16_flops,
        usd_per_million_tokens=None if price is None else 1e6 * price / tokens_per_s,
    )


def _played(
    program: Program,
    found: Sequence[Collective],
    kernels: Sequence[KernelWork],
    network: Network,
    chip: Chip,
    share: float,
) -> Times:
    """The schedule's times with kernels at this share of the peak; kernels of one name take their mean."""
    assert chip.clock_hz is not None
    names = {k.name for k in kernels}
    means = {
        name: _kernel_s([k for k in kernels if k.name == name], chip, share)
        / sum(k.calls for k in kernels if k.name == name)
        for name in names
    }
    return Timeline(program, found, chip.clock_hz, means, network.seconds).run()


def _kernel_s(kernels: Sequence[KernelWork], chip: Chip, share: float) -> float:
    return sum(k.calls * k.seconds(chip, share) for k in kernels)


def _traffic(found: Sequence[Collective], network: Network) -> tuple[Traffic, ...]:
    """Collectives summed by kind and axes, the largest first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for collective in found:
        groups.setdefault((collective.kind, collective.axes), []).append(collective)
    rows = [
        Traffic(
            kind=kind,
            axes=axes,
            runs=sum(c.runs for c in members),
            payload_bytes=sum(c.runs * c.payload_bytes for c in members),
            overlapped_bytes=sum(c.runs * c.payload_bytes for c in members if c.has_work_beside),
            seconds=sum(c.runs * network.seconds(c) for c in members),
        )
        for (kind, axes), members in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.payload_bytes))
