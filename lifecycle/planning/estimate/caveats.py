"""The assumptions and omissions of an estimate, in sentences: each names the figures that it concerns."""

from collections.abc import Iterator, Sequence

from lifecycle.model.dispatch import ROOM
from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.kernels import ASSUMED_SHARE, KernelWork
from lifecycle.planning.compiled.prefetch import prefetches
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.roofline import NARROW_SHARE, PRODUCT_SHARE, SLOWEST
from lifecycle.planning.compiled.timeline import Times
from lifecycle.planning.topology import Topology

KERNEL_RANGE = (0.4, 0.8)  # shares of the peak at the ends of the range
OF_TPUS = (
    "From the compiler, exact for this program and compiler version: memory, the schedule, cycles of everything but "
    "kernels, and the shapes from which collectives' bytes and matrix products' FLOPs are counted.",
    "Counted by us from shapes and names: memory traffic (approximate; the step does not depend on it) and kernels' "
    "FLOPs.",
    "Cycles are the compiler's estimate at the clock that the stated peak implies; a chip that throttles, waits for "
    "its host or loads data late is slower. Nothing was compared with a real chip.",
)
OF_GPUS = (
    "From the compiler, exact for this program and compiler version: memory, the schedule, and the shapes from which "
    "collectives' bytes and matrix products' FLOPs are counted. With a GPU the compiler also tries which kernel is "
    "the fastest for each product (cuBLASLt's or Triton's, with which tiles); here it took its default, so there "
    "workspaces, and with them memory, differ a little.",
    "Estimated by us: time. The compiler gives none. An instruction takes its products at "
    f"{PRODUCT_SHARE:.0%} of the peak ({NARROW_SHARE:.0%} of 8-bit values: the best that was measured for any shape on "
    "an H100) or its memory traffic, as we count it, at the stated rate; the slow end of the range takes "
    f"{1 / SLOWEST:.0%} of that. A GPU that throttles, waits for its host, or has to launch many small kernels is "
    "slower. Nothing was compared with a real GPU.",
    "Not in the memory: the process's CUDA context and NCCL's buffers, a few GB.",
)


def caveats(
    program: Program,
    collectives: Sequence[Collective],
    kernels: Sequence[KernelWork],
    times: Times,
    topology: Topology,
) -> tuple[str, ...]:
    """The sentences for one program on a topology."""
    network = [c for c in collectives if not c.is_to_host]
    return (
        *(OF_TPUS if topology.chip.is_tpu else OF_GPUS),
        *_of_kernels(kernels, times, any(c.kind == "ragged-all-to-all" for c in network)),
        *_of_copies(program, times),
        *_of_networks(network, times, topology),
        *_of_host([c for c in collectives if c.is_to_host], times, topology),
        *_of_control(program),
    )


def _of_kernels(kernels: Sequence[KernelWork], times: Times, is_exchanged: bool) -> Iterator[str]:
    if not kernels:
        return
    names = ", ".join(sorted({k.name for k in kernels}))
    yield (
        f"{_share(times.kernel_s, times)} of the step are kernels ({names}), whose time the compiler does not know: "
        f"taken at {ASSUMED_SHARE:.0%} of the peak or at the memory's rate; the range shows {KERNEL_RANGE[0]:.0%} to "
        f"{KERNEL_RANGE[1]:.0%}."
    )
    unknown = sorted({k.name for k in kernels if k.flops is None})
    if unknown:
        yield f"Kernels whose products are not known count as their memory traffic: {', '.join(unknown)}."
    if is_exchanged and any("gmm" in k.name for k in kernels):
        yield (
            "Experts' kernels are costed at an even load, as if every device's experts got as many rows. Surrounding "
            f"ops and the exchange back from the experts are costed at full buffer size: {ROOM} times as many."
        )


def _of_copies(program: Program, times: Times) -> Iterator[str]:
    if any(prefetches(program)):
        yield (
            f"{_share(times.memory_exposed_s, times)} of the step are waits for copies between HBM and VMEM, which "
            "stand still while a kernel reads. Products that read HBM beside a copy are not slower for it here."
        )


def _of_networks(network: Sequence[Collective], times: Times, topology: Topology) -> Iterator[str]:
    if not network and topology.num_slices == 1:
        return
    yield (
        f"{_share(times.exposed_s, times)} of the step are waits for the network at the links' stated rates, without "
        "contention between axes. Real rates are lower: jax-ml.github.io/scaling-book uses 90 GB/s a link where v5p's "
        "page states 100, and has measured about 370 of an H100's 450."
    )
    if topology.num_slices > 1 and not any("replica" in c.axes for c in network):
        yield "No collective crosses the slices: check that the program is the one you meant."


def _of_host(moves: Sequence[Collective], times: Times, topology: Topology) -> Iterator[str]:
    if moves and topology.chip.host_bytes_per_s is None:
        yield (
            f"The rate of the link between a {topology.chip.name} and its host is not known: offloading is costed at "
            "nothing."
        )
    elif moves:
        yield (
            f"{_share(times.host_exposed_s, times)} of the step are waits for the host's memory at the link's stated "
            "rate; contention between a host's devices is not counted."
        )


def _of_control(program: Program) -> Iterator[str]:
    if program.unknown_loops:
        yield f"Loops of unknown length count once: {', '.join(program.unknown_loops)}."
    if program.seldom_loops:
        yield (
            "Loops that the model's code marks as seldom needed (further rounds for experts with many more rows than "
            "the others, sums of exponentials that overflow) count as none: "
            f"{', '.join(program.seldom_loops)}."
        )
    choices = program.choices
    if choices:
        total = max(1, program.cycles)
        most, least = sum(c.most for c in choices) / total, sum(c.least for c in choices) / total
        yield (
            f"{sum(c.runs for c in choices):,} runs of conditionals ({', '.join(c.operation for c in choices)}) are "
            f"costed at their costliest branch: {most:.0%} of the cycles, with the cheapest {least:.0%}. Ring "
            "attention over causal rows skips about half of its blocks, and sampling without filters skips the sort: "
            "here all count."
        )


def _share(seconds: float, times: Times) -> str:
    return f"{seconds / times.total_s:.0%}" if seconds else "0%"
