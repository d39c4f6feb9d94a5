"""What an estimated program means for those who pay for it: tokens per second, MFU, days and money.

MFU is model FLOPs over what the devices could do in the same time, with causal attention counted half; next to it the
older convention that counts the whole square (Chowdhery et al. 2022, appendix B). Prices are the chips' list prices.
"""

from dataclasses import dataclass

from lifecycle.planning.estimate.step import StepEstimate
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.topology import Topology


@dataclass(frozen=True)
class TrainingBudget:
    """What an estimated step means for a training run."""

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


def training_budget(step: StepEstimate, topology: Topology, work: Work) -> TrainingBudget:
    """A run of `work.runs` steps like this one."""
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


def inference_budget(step: StepEstimate, topology: Topology, work: Work) -> InferenceBudget:
    """Runs like this one, back to back and with every slot busy; the host's part of the engine is not in it.

    The engine's programs run on one device, whatever the chip has; it is that device's share of the chip that costs.
    """
    chip = topology.chip
    tokens_per_s = work.tokens / step.step_s
    price = None if chip.price_per_hour is None else chip.price_per_hour / chip.devices_per_chip / 3600
    return InferenceBudget(
        model_flops=work.flops,
        tokens_per_run=work.tokens,
        tokens_per_s=tokens_per_s,
        ms_per_run=1e3 * step.step_s,
        mfu=work.flops / step.step_s / chip.bf16_flops,
        usd_per_million_tokens=None if price is None else 1e6 * price / tokens_per_s,
    )
