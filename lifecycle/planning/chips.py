"""The accelerators that a plan can target: memory, rates and networks, each figure with its source.

Figures are per JAX device: a chip, except on tpu7x, where it is half a chip (two chiplets with their own memory).
Networks and prices are per chip. Bandwidths are one way. Rates are the vendors' peaks, which no program reaches; how
close a program comes is for the plan to estimate.

A TPU's `hbm_bytes` is what its compiler (libtpu 0.0.50.1) lets a program use, as stated in its error for an array that
does not fit. The vendor states, per chip, v4 32 GiB, v5e 16 GB, v5p 95 GiB, v6e 32 GB, tpu7x 192 GiB. A GPU's is the
total that the driver reports to a program, part of which the program's own context takes.

The link to the host is PCIe. The rates of TPUs are from jax-ml.github.io/scaling-book/tpus; those of H100 and H200 were
measured on 8 H200 (stas00/ml-engineering network/README.md); that of A100 is the stated rate of 16 lanes of PCIe 4. For
tpu7x no figure is known.

Every page named here was read as a stored copy in November 2026. A figure is marked "second hand" where the vendor's
own page was not read; the source that repeats it is named.

`flops_per_cycle` is the FLOPs that a device's matrix units do in a cycle: units x rows x columns x 2; on a GPU cores x
4 x multiply-adds x 2. Together with the peak it gives the clock that turns cycles into seconds. Evidence for TPUs: for
one bfloat16 product of 8192 x 8192
matrices with the scoped VMEM limit raised, the compiler's own estimates in FLOPs per cycle are v4 235,511 of 262,144
(both cores), v5e 128,158 of 131,072, v5p 257,805 of 262,144, v6e 482,330 of 524,288, tpu7x 483,674 of 524,288.
"""

import difflib
from dataclasses import dataclass

from lifecycle.core.config import ConfigError

GIB = 2**30
GPUS_PER_NODE = 8  # of all GPUs here; those of a node reach each other through its switch


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator; a figure is `None` if it does not apply or is unknown."""

    name: str
    hbm_bytes: int  # per device, usable
    bf16_flops: float  # per device and second, dense
    int8_ops: float | None  # per device and second, dense, float8 alike where GPUs have it; None: none is stated
    hbm_bytes_per_s: float  # per device
    links: int  # links of the fast network, per chip; 2 per torus dimension
    link_bytes_per_s: float  # per link, one way
    dcn_bytes_per_s: float  # over the network between slices or hosts, per chip
    host_bytes_per_s: float | None  # between the device and its host's memory, one way; None: unknown
    flops_per_cycle: int  # per device, bfloat16
    price_per_hour: float | None  # USD per chip, on demand, United States
    sources: str
    devices_per_chip: int = 1
    torus_dims: int = 0  # 0: not a torus; every device of a host reaches every other at the full rate
    chip_config: str | None = None  # the compiler's name for "both cores are one device", if that is not the default

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU; otherwise it is a GPU of NVIDIA's."""
        return self.torus_dims > 0

    @property
    def clock_hz(self) -> float:
        """Cycles per second of the matrix units at the stated peak."""
        return self.bf16_flops / self.flops_per_cycle


TPU_PRICES = (
    "second hand, sgl-project/sglang-jax python/sgl_jax/bench_one_batch_server.py: Google's price sheet, October 2026, "
    "cheapest US region"
)
DGX = "docs.nvidia.com/dgx-basepod (8 x 400 Gbps for 8 GPUs)"
ML_ENGINEERING = "github.com/stas00/ml-engineering compute/accelerator and network, 2026"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            hbm_bytes=int(30.75 * GIB),
            bf16_flops=275e12,
            int8_ops=275e12,
            hbm_bytes_per_s=1.2e12,
            links=6,
            link_bytes_per_s=45e9,
            dcn_bytes_per_s=6.25e9,
            host_bytes_per_s=16e9,
            flops_per_cycle=2 * 4 * 128 * 128 * 2,
            price_per_hour=3.22,
            torus_dims=3,
            chip_config="megacore",
            sources="peak (bf16 and int8 alike), HBM rate: docs.cloud.google.com/tpu/docs/v4; links, DCN: "
            f"jax-ml.github.io/scaling-book/tpus; price: {TPU_PRICES}",
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
            host_bytes_per_s=16e9,
            flops_per_cycle=4 * 128 * 128 * 2,
            price_per_hour=1.20,
            torus_dims=2,
            sources="peak, HBM rate, ICI 400 GB/s both ways over 4 links, DCN 6.4 Tbps a pod of 256: "
            f"docs.cloud.google.com/tpu/docs/v5e; price: {TPU_PRICES}",
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
            host_bytes_per_s=16e9,
            flops_per_cycle=2 * 4 * 128 * 128 * 2,
            price_per_hour=4.20,
            torus_dims=3,
            sources="bf16 peak, HBM rate, ICI 1200 GB/s both ways over 6 links, DCN 50 Gbps a chip: "
            "docs.cloud.google.com/tpu/docs/v5p; int8 (which that page does not state): "
            f"jax-ml.github.io/scaling-book/tpus; price: {TPU_PRICES}",
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
            host_bytes_per_s=32e9,
            flops_per_cycle=4 * 256 * 256 * 2,
            price_per_hour=2.70,
            torus_dims=2,
            sources="peak, ICI 800 GB/s both ways over 4 links, DCN 25.6 Tbps a pod of 256: "
            "docs.cloud.google.com/tpu/docs/v6e; HBM rate: the comparison in docs.cloud.google.com/tpu/docs/tpu7x (the "
            f"v6e page rounds it to 1600 GB/s); price: {TPU_PRICES}",
        ),
        Chip(
            name="tpu7x",
            hbm_bytes=int(94.74 * GIB),
            bf16_flops=2307e12 / 2,
            int8_ops=None,  # it has float8 instead, at twice the bfloat16 rate
            hbm_bytes_per_s=7380e9 / 2,
            links=6,
            link_bytes_per_s=100e9,
            dcn_bytes_per_s=12.5e9,
            host_bytes_per_s=None,
            flops_per_cycle=4 * 256 * 256 * 2,
            price_per_hour=12.00,
            devices_per_chip=2,
            torus_dims=3,
            sources="peak, HBM rate, ICI 1200 GB/s both ways over 6 links, DCN 100 Gbps a chip: "
            f"docs.cloud.google.com/tpu/docs/tpu7x; price: {TPU_PRICES}",
        ),
        Chip(
            name="h100",
            hbm_bytes=int(79.11 * GIB),
            bf16_flops=989e12,
            int8_ops=1979e12,
            hbm_bytes_per_s=3350e9,
            links=1,
            link_bytes_per_s=450e9,
            dcn_bytes_per_s=50e9,
            host_bytes_per_s=55e9,
            flops_per_cycle=132 * 4 * 512 * 2,
            price_per_hour=10.98,
            sources="SXM, 80 GB. Memory: the total in an out-of-memory message, vllm-project/vllm issue 27508; peak, "
            f"HBM rate, NVLink 900 GB/s both ways: NVIDIA's, second hand, {ML_ENGINEERING}; hosts: {DGX}; price: "
            "second hand, tgarg01/silybench-data prices/gpu_hourly.yaml: Google's price list, September 2026, "
            "a3-highgpu-1g in us-central1 with its host",
        ),
        Chip(
            name="h200",
            hbm_bytes=int(139.80 * GIB),
            bf16_flops=989e12,
            int8_ops=1979e12,
            hbm_bytes_per_s=4800e9,
            links=1,
            link_bytes_per_s=450e9,
            dcn_bytes_per_s=50e9,
            host_bytes_per_s=55e9,
            flops_per_cycle=132 * 4 * 512 * 2,
            price_per_hour=10.0,
            sources="SXM. Memory: the total in public out-of-memory messages; peak, HBM rate, NVLink 900 GB/s both "
            f"ways: NVIDIA's, second hand, {ML_ENGINEERING}; hosts: {DGX}; price: about, on Google Cloud in August "
            "2025, jax-ml.github.io/scaling-book/gpus",
        ),
        Chip(
            name="a100-80",
            hbm_bytes=int(79.35 * GIB),
            bf16_flops=312e12,
            int8_ops=624e12,
            hbm_bytes_per_s=2039e9,
            links=1,
            link_bytes_per_s=300e9,
            dcn_bytes_per_s=25e9,
            host_bytes_per_s=31.5e9,
            flops_per_cycle=108 * 4 * 256 * 2,
            price_per_hour=5.07,
            sources="SXM, 80 GB. Memory: deviceQuery's total, gist.github.com/gengwg/3520df2ebf8872e5ee4818367e3a4122; "
            f"peak, NVLink 600 GB/s both ways: NVIDIA's, second hand, {ML_ENGINEERING}; HBM rate: NVIDIA's, second "
            "hand, glennklockwood.com/garden/processors/A100; hosts (200 Gbps a GPU): second hand, calculon-ai/"
            "calculon systems/a100_80g.json; price: second hand, Cyclenerd/google-cloud-pricing-cost-calculator "
            "pricing.yml: Google's price list, March 2025, an eighth of a2-ultragpu-8g in us-central1",
        ),
        Chip(
            name="b200",
            hbm_bytes=191514411008,
            bf16_flops=2250e12,
            int8_ops=4500e12,
            hbm_bytes_per_s=8000e9,
            links=1,
            link_bytes_per_s=900e9,
            dcn_bytes_per_s=50e9,
            host_bytes_per_s=None,
            flops_per_cycle=148 * 4 * 1024 * 2,
            price_per_hour=None,
            sources="SXM. Memory: github.com/openxla/xla xla/backends/gpu/target_config/specs/b200.txtpb; "
            f"peak, HBM rate, NVLink 1800 GB/s both ways: NVIDIA's, second hand, {ML_ENGINEERING}; hosts: {DGX}",
        ),
    )
}


# By `jax.Device.device_kind`, as `core/platform.py:kind_of` names it.
DEVICE_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA B200": "b200",
}  # fmt: skip


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip of a device here, by JAX's name for it; None if no figures of it are known, as of a CPU's."""
    name = DEVICE_KINDS.get(device_kind)
    return None if name is None else CHIPS[name]


def find_chip(name: str) -> Chip:
    """The chip of this name; raises `ConfigError` with the nearest known name."""
    if name in CHIPS:
        return CHIPS[name]
    near = difflib.get_close_matches(name.lower(), CHIPS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise ConfigError(f"topology: no chip {name!r}; {hint}: {', '.join(CHIPS)}")
