"""A plan for people: tables, and memory as a bar."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifecycle.planning.estimate import Budget, Estimate
from lifecycle.planning.memory import Memory
from lifecycle.planning.plan import Planned

BAR_WIDTH = 60
PARTS = (  # name, field, colour
    ("parameters", "parameters_bytes", "blue"),
    ("optimizer", "optimizer_bytes", "cyan"),
    ("batch, cache", "other_arguments_bytes", "magenta"),
    ("temporaries", "temporaries_bytes", "yellow"),
)


def show(planned: Planned, budget: Budget | None, console: Console) -> None:
    """Prints everything that is known of a plan."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in planned.mesh.items() if size > 1) or "one device"
    options = " ".join(f"{name}={value}" for name, value in planned.options.items()) or "default options"
    title = f"{planned.program} on {planned.topology}, mesh {mesh}\ncompiled in {planned.compile_s:.0f} s, {options}"
    console.print(Text(title, style="bold"))
    if planned.memory is None:
        console.print(f"does not fit: needs {gigabytes(planned.needs_bytes)} of memory per device", style="red")
        return
    console.print(memory_picture(planned.memory))
    if planned.estimate is None:
        return
    console.print(work_table(planned.estimate, budget))
    if planned.estimate.traffic:
        console.print(network_table(planned.estimate))
    console.print(step_table(planned.estimate, budget))
    console.print(spenders_table(planned))
    console.print(Text("How far to trust it", style="bold"))
    for line in planned.estimate.trust:
        console.print(f"- {line}", highlight=False)


def memory_picture(memory: Memory) -> RenderableType:
    """A bar of the device's memory, and its parts as a table."""
    bar, table = Text("  "), _table("memory per device", ("part", "bytes", "of the device"))
    for name, field, colour in PARTS:
        size = getattr(memory, field)
        bar.append("█" * round(BAR_WIDTH * max(0, size) / memory.hbm_bytes), style=colour)
        table.add_row(Text(name, style=colour), gigabytes(size), f"{size / memory.hbm_bytes:.1%}")
    bar.append("░" * max(0, BAR_WIDTH + 2 - len(bar)), style="dim")
    table.add_row("peak", gigabytes(memory.peak_bytes), f"{memory.share:.1%}")
    verdict = "fits" if memory.share <= 1 else "does not fit"
    table.add_row(Text(verdict, style="bold green" if memory.share <= 1 else "bold red"), gigabytes(memory.hbm_bytes))
    return Group(table, bar)


def work_table(found: Estimate, budget: Budget | None) -> Table:
    table = _table("work per device and step", ("", "", ""))
    products = found.product_cycles / found.cycles if found.cycles else 0.0
    table.add_row("compute cycles", f"{found.cycles / 1e6:,.0f} M", f"{products:.0%} in matrix products")
    table.add_row("matrix products", f"{found.matmul_flops / 1e12:,.2f} TFLOP", "outside kernels")
    for kernel in found.kernels:
        flops = "unknown" if kernel.flops is None else f"{kernel.total_flops / 1e12:,.2f} TFLOP"
        table.add_row(f"kernel {kernel.name}", flops, f"{kernel.calls} calls")
    if budget is not None:
        table.add_row("the model's own", f"{budget.model_flops / 1e12:,.2f} TFLOP", "causal attention counted half")
        table.add_row(
            "recomputation", f"{budget.recompute_overhead:.1%}", "products above the model's own, kernels too"
        )
    table.add_row("memory traffic", gigabytes(found.hbm_traffic_bytes), "")
    return table


def network_table(found: Estimate) -> Table:
    columns = ("collective", "axes", "runs", "payload", "with work beside it", "network alone")
    table = _table("network per device and step", columns)
    for row in found.traffic:
        beside = f"{row.overlapped_bytes / row.payload_bytes:.0%}" if row.payload_bytes else ""
        cells = (row.kind, " ".join(row.axes), f"{row.runs:,}", gigabytes(row.payload_bytes), beside)
        table.add_row(*cells, milliseconds(row.seconds))
    return table


def step_table(found: Estimate, budget: Budget | None) -> Table:
    """The expected step, how it is derived, and what it means for a run."""
    times, table = found.times, _table("expected step", ("", "", ""))
    table.add_row("compute", milliseconds(times.compute_s), "cycles at the chip's clock")
    table.add_row("kernels", milliseconds(times.kernel_s), "their FLOPs at the assumed share of the peak")
    table.add_row("waiting for the network", milliseconds(times.exposed_s), f"of {milliseconds(times.network_s)} busy")
    table.add_row(Text("step", style="bold"), milliseconds(found.step_s), _range(found))
    table.add_row("roofline: products", milliseconds(found.compute_roofline_s), "all products at the peak")
    table.add_row("roofline: memory", milliseconds(found.hbm_roofline_s), "all traffic at the memory's rate")
    table.add_row("roofline: network", milliseconds(found.network_roofline_s), "one collective after the other")
    if budget is not None:
        table.add_row("tokens/s", f"{budget.tokens_per_s:,.0f}", f"{budget.tokens_per_s_per_chip:,.0f} per chip")
        full = f"{budget.mfu_full_attention:.1%} with attention's whole square"
        table.add_row("MFU", f"{budget.mfu:.1%}", f"causal attention counted half; {full}")
        money = "no price known" if budget.money is None else f"{budget.money:,.0f} USD at the list price"
        table.add_row("the run", f"{budget.days:,.2f} days", f"{budget.tokens:,} tokens; {money}")
    return table


def spenders_table(planned: Planned, most: int = 8) -> Table:
    table = _table("cycles by what the code was doing", ("operation", "kind", "cycles", "share"))
    whole = planned.estimate.cycles if planned.estimate else 0
    for spender in planned.spenders[:most]:
        kind = "product" if spender.is_product else ""
        table.add_row(spender.operation, kind, f"{spender.cycles / 1e6:,.1f} M", f"{spender.cycles / whole:.1%}")
    return table


def gigabytes(size: float) -> str:
    """Decimal units: GB are 10^9 bytes."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(size) >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size / 1e3:,.2f} kB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def _range(found: Estimate) -> str:
    return f"between {milliseconds(found.fastest_s)} and {milliseconds(found.slowest_s)}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right" if column else "left", overflow="fold")
    return table
