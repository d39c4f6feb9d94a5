"""Throughput and cost of an estimated program: tokens per second, MFU, days and money.

MFU is the model's FLOPs over the devices' peak in the same time, with causal attention counted half; it is also given
by the older convention that counts the full square (Chowdhery et al. 2022, appendix B). Prices are the chips' list
prices.

Decoding is memory-bound: each step reads the weights and the cache. The floor is the time of these reads with every
slot at its full context and all experts read; of an untied embedding only rows are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lifecycle.planning.estimate.step import StepEstimate
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.topology import Topology


@dataclass(frozen=True)
class TrainingBudget:
    """Throughput and cost of a training run, from its estimated step."""

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
    """Throughput and cost of the engine's prefill or decode, from one estimated run. Bytes are per device."""

    model_flops: float  # per device and run
    tokens_per_run: int  # prefill: those of the prompts' chunks; decode: one per slot
    tokens_per_s: float
    tokens_per_s_per_chip: float
    ms_per_run: float  # decode: from one of a slot's tokens to the next
    mfu: float
    weights_bytes: int
    cache_bytes: int
    floor_s: float  # time to read the weights and the whole cache once at the HBM rate
    usd_per_million_tokens: float | None  # with every slot busy; None: no price known

    @property
    def hbm_share(self) -> float:
        """For decode: the rate at which weights and cache are read, as a share of the HBM rate."""
        return 1e3 * self.floor_s / self.ms_per_run


def training_budget(step: StepEstimate, topology: Topology, work: Work) -> TrainingBudget:
    """The budget of a run of `work.runs` steps like this one."""
    chip = topology.chip
    peak = topology.num_devices * chip.bf16_flops
    hours = work.runs * step.step_s / 3600
    done = (step.matmul_flops + step.kernel_flops) * topology.num_devices
    return TrainingBudget(
        model_flops=work.flops / topology.num_devices,
        recompute_overhead=done / work.flops - 1,
        tokens_per_s=work.tokens / step.step_s,
        tokens_per_s_per_chip=work.tokens / step.step_s / topology.num_chips,
        mfu=work.flops / step.step_s / peak,
        mfu_full_attention=work.flops_full_attention / step.step_s / peak,
        tokens=work.tokens * work.runs,
        days=hours / 24,
        money=None if chip.price_per_hour is None else hours * topology.num_chips * chip.price_per_hour,
    )


def inference_budget(
    step: StepEstimate, topology: Topology, work: Work, known_bytes: Mapping[str, int], num_devices: int
) -> InferenceBudget:
    """The budget of runs like this one, back to back with every slot busy; excludes the engine's work on the host.

    `known_bytes` has the bytes per device of the program's arguments, by part. On a chip with two devices the program
    may use only one, at its share of the chip's price.
    """
    chip = topology.chip
    tokens_per_s = work.tokens / step.step_s
    num_chips = num_devices / chip.devices_per_chip
    price = None if chip.price_per_hour is None else num_chips * chip.price_per_hour / 3600
    weights, cache = known_bytes["parameters"], known_bytes["cache"]
    return InferenceBudget(
        model_flops=work.flops / num_devices,
        tokens_per_run=work.tokens,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_chip=tokens_per_s / num_chips,
        ms_per_run=1e3 * step.step_s,
        mfu=work.flops / step.step_s / num_devices / chip.bf16_flops,
        weights_bytes=weights + known_bytes.get("embedding", 0),
        cache_bytes=cache,
        floor_s=(weights + cache) / chip.hbm_bytes_per_s,
        usd_per_million_tokens=None if price is None else 1e6 * price / tokens_per_s,
    )
