"""Displays plans by arithmetic as tables."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from lifecycle.planning.display.units import flops, gigabytes, milliseconds
from lifecycle.planning.search.arithmetic import DEFAULT_FRACTION, SLOW, ArithmeticPlan
from lifecycle.planning.search.search import SLACK
from lifecycle.planning.topology import Topology


def memory_table(plan: ArithmeticPlan, topology: Topology) -> Table:
    """The parts of the peak, next to the device's memory."""
    table, parts, whole = _table("memory per device, by arithmetic"), plan.expected.footprint, topology.chip.hbm_bytes
    rows = (
        ("parameters, optimizer", parts.state_bytes, ""),
        ("kept for the backward pass", parts.saved_bytes, ""),
        ("gradients, gathered weights, a layer's work", parts.work_bytes, ""),
        ("mask of segments", plan.mask_bytes, ""),
        ("peak", plan.total_bytes, f"{plan.total_bytes / whole:.0%} of {gigabytes(whole)}"),
    )
    for name, size, meaning in rows:
        table.add_row(name, gigabytes(size), meaning)
    return table


def time_table(plan: ArithmeticPlan) -> Table:
    """The step's parts, what they add up to, and what that means for the run."""
    table, expected, shares = _table("a step per device, by arithmetic"), plan.expected, plan.shares()
    table.add_row("products", flops(expected.product_flops), f"at {shares['products']:.0%} of the peak")
    table.add_row("attention kernels", flops(expected.kernel_flops), f"at {shares['kernels']:.0%} of the peak")
    table.add_row("computing", milliseconds(expected.compute_s), "")
    table.add_row("network", milliseconds(expected.network_s), "one collective after the other")
    if expected.host_s:
        table.add_row("waiting for the host", milliseconds(expected.host_s), "")
    steps = (("network hidden", plan.fastest_s), ("network exposed", plan.step_s), ("slow", plan.slowest_s))
    for name, seconds in steps:
        table.add_row(f"step, {name}", milliseconds(seconds), _mfu(plan, seconds))
    table.add_row("tokens/s", f"{plan.tokens_per_s:,.0f}", "with the network exposed")
    for name, seconds in steps:
        usd = plan.usd(seconds)
        money = "no price known" if usd is None else f"{usd:,.0f} USD at the list price"
        table.add_row(f"the run, {name}", f"{plan.days(seconds):,.2f} days", money)
    return table


def ranked_table(plans: Sequence[ArithmeticPlan], most: int = 8) -> Table:
    """The best candidates of a search."""
    title = f"{len(plans)} candidates fit by arithmetic; the fastest"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("candidate", "peak", "computing", "network", "step", "MFU"):
        table.add_column(column, justify="left" if column == "candidate" else "right", overflow="fold")
    for plan in plans[:most]:
        parts = plan.expected
        cells = (*map(milliseconds, (parts.compute_s, parts.network_s, plan.step_s)), f"{plan.mfu(plan.step_s):.0%}")
        table.add_row(plan.candidate.name, gigabytes(plan.total_bytes), *cells)
    return table


def trust(plan: ArithmeticPlan, topology: Topology) -> Iterator[str]:
    """What these figures assume and leave out, in sentences."""
    yield (
        "Nothing was compiled or run for this chip: sizes and FLOPs are counted, rates are shares of peaks, taken from "
        "programs compiled for TPUs; nothing shows them for GPUs."
    )
    yield f"`slow`: products and kernels at {SLOW:.0%} of these shares, no collective hidden."
    yield "cuDNN's forward kernel counts twice (its log-sum-exp has no name, so any remat policy runs it again)."
    if plan.precision is not None:
        yield f"precision={plan.precision} is counted as bfloat16: in products, memory and traffic."
    need, fraction = plan.total_bytes / topology.chip.hbm_bytes, DEFAULT_FRACTION
    if need > SLACK:
        yield (
            f"This does not fit: it needs {need:.0%} of a GPU's memory, and at most {SLACK:.0%} should be asked for. "
            "Raise grad_accum, keep less by remat, or add search=true."
        )
    elif need > fraction:
        yield (
            f"JAX takes {fraction:.0%} of a GPU's memory and this needs {need:.0%}: set "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={min(0.95, need + 0.05):.2f} in the job's environment"
        )


def _mfu(plan: ArithmeticPlan, seconds: float) -> str:
    return f"MFU {plan.mfu(seconds):.1%}, causal attention counted half"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify, overflow="fold")
    return table
