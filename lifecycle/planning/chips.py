"""The accelerators a plan can be made for: memory, rates and networks, each with where the figure comes from.

Figures are per JAX device, which is a chip, but half a chip on tpu7x (two chiplets with their own memory); networks and
prices are per chip. Bandwidths are one way. Rates are the vendors' peaks, never reached: what a program does with
them is the plan's business.

A TPU's `hbm_bytes` is what its compiler (libtpu 0.0.50.1) lets a program use: it says so when an array does not fit.
Vendors state more (v5p 95 GiB of 96, v6e 32 GiB).

`flops_per_cycle` is what the chip's matrix units do in a cycle: units x rows x columns x 2. With the peak it gives the
clock that turns the compiler's cycles into seconds. Its evidence: the compiler's own estimate for one bfloat16 product
of 8192 x 8192 matrices with the scoped VMEM limit raised is, in FLOPs per cycle, v4 235,511 of 262,144 (both cores),
v5e 128,158 of 131,072, v5p 257,805 of 262,144, v6e 482,330 of 524,288, tpu7x 483,674 of 524,288.
"""

import difflib
from dataclasses import dataclass

from lifecycle.core.config import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator; `None` where there is no such thing or no figure was found."""

    name: str
    hbm_bytes: int  # per device, usable
    bf16_flops: float  # per device and second, dense
    int8_ops: float | None  # per device and second, dense; None: slower than bfloat16 or not offered
    hbm_bytes_per_s: float  # per device
    links: int  # of the fast network, per chip; 2 per torus dimension
    link_bytes_per_s: float  # of one link, one way
    dcn_bytes_per_s: float  # of the network between slices or hosts, per chip
    flops_per_cycle: int | None  # per device, bfloat16; None: no compiler estimates its cycles
    price_per_hour: float | None  # USD per chip, on demand, United States
    sources: str
    devices_per_chip: int = 1
    torus_dims: int = 0  # 0: not a torus, every device of a host sees every other at the full rate
    chip_config: str | None = None  # the compiler's name for "both cores are one device", where it is not the default

    @property
    def is_tpu(self) -> bool:
        return self.torus_dims > 0

    @property
    def clock_hz(self) -> float | None:
        """Cycles per second of the matrix units at the stated peak."""
        return self.bf16_flops / self.flops_per_cycle if self.flops_per_cycle else None


TPU_PRICES = "list price as several public pages of 2025 and 2026 repeat it; the vendor's own table was not read"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            hbm_bytes=int(30.75 * GIB),
            bf16_flops=275e12,
            int8_ops=None,
            hbm_bytes_per_s=1.2e12,
            links=6,
            link_bytes_per_s=45e9,
            dcn_bytes_per_s=6.25e9,
            flops_per_cycle=2 * 4 * 128 * 128 * 2,
            price_per_hour=3.22,
            torus_dims=3,
            chip_config="megacore",
            sources="peak, HBM: docs.cloud.google.com/tpu/docs/v4 (bf16 and int8 alike); links, DCN (25 GB/s a host of "
            f"4): jax-ml.github.io/scaling-book/tpus; price: {TPU_PRICES}",
        ),
        Chip(
            name="v5e",
            hbm_bytes=int(15.75 * GIB),
            bf16_flops=197e12,
            int8_ops=393e12,
            hbm_bytes_per_s=819e9,
            links=4,
            link_bytes_per_s=50e9,
            dcn_bytes_per_s=6.4e12 / 8 / 256,
            flops_per_cycle=4 * 128 * 128 * 2,
            price_per_hour=1.20,
            torus_dims=2,
            sources="peak, HBM, ICI 400 GB/s both ways, DCN 6.4 Tbps a pod: docs.cloud.google.com/tpu/docs/v5e; price: "
            "cloud.google.com/tpu as quoted in public pages of 2025",
        ),
        Chip(
            name="v5p",
            hbm_bytes=int(95.73 * GIB),
            bf16_flops=459e12,
            int8_ops=918e12,
            hbm_bytes_per_s=2765e9,
            links=6,
            link_bytes_per_s=100e9,
            dcn_bytes_per_s=50e9 / 8,
            flops_per_cycle=2 * 4 * 128 * 128 * 2,
            price_per_hour=4.20,
            torus_dims=3,
            sources="peak, HBM, ICI 1200 GB/s both ways, DCN 50 Gbps a chip: docs.cloud.google.com/tpu/docs/v5p; int8: "
            "jax-ml.github.io/scaling-book/tpus; price: cloud.google.com/tpu as quoted in public pages of 2025",
        ),
        Chip(
            name="v6e",
            hbm_bytes=int(31.24 * GIB),
            bf16_flops=918e12,
            int8_ops=1836e12,
            hbm_bytes_per_s=1638e9,
            links=4,
            link_bytes_per_s=100e9,
            dcn_bytes_per_s=25.6e12 / 8 / 256,
            flops_per_cycle=4 * 256 * 256 * 2,
            price_per_hour=2.70,
            torus_dims=2,
            sources="peak, HBM, ICI 800 GB/s both ways, DCN 25.6 Tbps a pod: docs.cloud.google.com/tpu/docs/v6e; "
            f"price: {TPU_PRICES}",
        ),
        Chip(
            name="tpu7x",
            hbm_bytes=int(94.74 * GIB),
            bf16_flops=2307e12 / 2,
            int8_ops=None,  # has float8 instead: twice the bfloat16 rate
            hbm_bytes_per_s=7380e9 / 2,
            links=6,
            link_bytes_per_s=100e9,
            dcn_bytes_per_s=12.5e9,
            flops_per_cycle=4 * 256 * 256 * 2,
            price_per_hour=None,
            devices_per_chip=2,
            torus_dims=3,
            sources="peak, HBM, ICI 200 GB/s both ways a dimension: docs.cloud.google.com/tpu/docs/tpu7x; DCN: taken "
            "like v6e's; price: none found",
        ),
        Chip(
            name="h100",
            hbm_bytes=80 * GIB,
            bf16_flops=989e12,
            int8_ops=1979e12,
            hbm_bytes_per_s=3350e9,
            links=1,
            link_bytes_per_s=450e9,
            dcn_bytes_per_s=50e9,
            flops_per_cycle=None,
            price_per_hour=9.88,
            sources="SXM, 80 GB: nvidia.com/en-us/data-center/h100 (NVLink 900 GB/s both ways), 400 Gbps a GPU between "
            "hosts as in a DGX; price: a public page's 2026 quotation of cloud.google.com/compute/gpus-pricing",
        ),
        Chip(
            name="h200",
            hbm_bytes=int(141e9),
            bf16_flops=989e12,
            int8_ops=1979e12,
            hbm_bytes_per_s=4800e9,
            links=1,
            link_bytes_per_s=450e9,
            dcn_bytes_per_s=50e9,
            flops_per_cycle=None,
            price_per_hour=10.0,
            sources="SXM: nvidia.com/en-us/data-center/h200, 400 Gbps a GPU between hosts as in a DGX; price: 'around "
            "$10/hour' in jax-ml.github.io/scaling-book/gpus, 2025",
        ),
        Chip(
            name="a100-80",
            hbm_bytes=80 * GIB,
            bf16_flops=312e12,
            int8_ops=624e12,
            hbm_bytes_per_s=2039e9,
            links=1,
            link_bytes_per_s=300e9,
            dcn_bytes_per_s=25e9,
            flops_per_cycle=None,
            price_per_hour=3.93,
            sources="SXM, 80 GB: nvidia.com/en-us/data-center/a100 (NVLink 600 GB/s both ways), 200 Gbps a GPU between "
            "hosts as in a DGX; price: a public page's 2026 quotation of cloud.google.com/compute/gpus-pricing",
        ),
    )
}


def find_chip(name: str) -> Chip:
    """The chip of this name; raises `ConfigError` with the nearest known name."""
    if name in CHIPS:
        return CHIPS[name]
    near = difflib.get_close_matches(name.lower(), CHIPS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise ConfigError(f"topology: no chip {name!r}; {hint}: {', '.join(CHIPS)}")
