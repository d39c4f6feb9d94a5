"""Displays a plan as tables, with memory as a bar."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.kernels import KernelWork
from lifecycle.planning.compiled.memory import DeviceMemory
from lifecycle.planning.display.units import flops, gigabytes, milliseconds
from lifecycle.planning.estimate.budget import InferenceBudget, TrainingBudget
from lifecycle.planning.estimate.step import StepEstimate
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.topology import parse_topology

BAR_WIDTH = 60
PARTS = (  # name, field, colour
    ("parameters", "parameters_bytes", "blue"),
    ("optimizer", "optimizer_bytes", "cyan"),
    ("cache", "cache_bytes", "green"),
    ("other arguments", "other_arguments_bytes", "magenta"),
    ("temporaries", "temporaries_bytes", "yellow"),
    ("beside the program", "beside_bytes", "red"),
)


def show(plan: ProgramPlan, console: Console) -> None:
    """Prints everything that is known about a plan."""
    chip = parse_topology(plan.topology).chip
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    options = " ".join(f"{name}={value}" for name, value in plan.options.items()) or "default options"
    title = f"{plan.program} on {plan.topology}, mesh {mesh}\ncompiled in {plan.compile_s:.0f} s, {options}"
    console.print(Text(title, style="bold"))
    console.print(chip_line(chip), highlight=False)
    if plan.memory is None:
        console.print(misfit(plan, chip))
        return
    console.print(memory_picture(plan.memory))
    if plan.beside_bytes:
        held = ", ".join(f"{name} {gigabytes(size)}" for name, size in plan.beside_bytes.items())
        console.print(f"beside the program: {held}", highlight=False)
    if not plan.fits:
        console.print("\n".join(["What helps", *(f"- {line}" for line in remedies(plan, chip))]), highlight=False)
    if plan.estimate is None:
        return
    console.print(work_table(plan.estimate, plan.budget))
    if plan.estimate.traffic:
        console.print(network_table(plan.estimate))
    console.print(step_table(plan.estimate, plan.budget, plan.kind == "prefill"))
    console.print(spenders_table(plan))
    console.print(Text("How far to trust it", style="bold"))
    for line in plan.estimate.trust:
        console.print(f"- {line}", highlight=False, markup=False)


def chip_line(chip: Chip) -> str:
    """The chip's figures, on which everything below is based, and their sources."""
    int8 = "none stated" if chip.int8_ops is None else f"{chip.int8_ops / 1e12:,.0f} TOP/s"
    links = f"{chip.links} link{'s' * (chip.links > 1)} a chip of {chip.link_bytes_per_s / 1e9:,.0f} GB/s one way"
    host = "unknown" if chip.host_bytes_per_s is None else f"{chip.host_bytes_per_s / 1e9:,.1f} GB/s"
    return (
        f"{chip.name}, a device: {gigabytes(chip.hbm_bytes)} at {chip.hbm_bytes_per_s / 1e9:,.0f} GB/s, peak "
        f"{chip.bf16_flops / 1e12:,.1f} TFLOP/s in bfloat16, in int8 {int8}; {links}; to the host {host}\n"
        f"  sources: {chip.sources}"
    )


def memory_picture(memory: DeviceMemory) -> RenderableType:
    """A bar of the device's memory, and its parts as a table."""
    bar, table = Text("  "), _table("memory per device", ("part", "bytes", "of the device"))
    for name, field, colour in PARTS:
        size = getattr(memory, field)
        if not size:
            continue
        bar.append("█" * round(BAR_WIDTH * max(0, size) / memory.hbm_bytes), style=colour)
        table.add_row(Text(name, style=colour), gigabytes(size), f"{size / memory.hbm_bytes:.1%}")
    bar.append("░" * max(0, BAR_WIDTH + 2 - len(bar)), style="dim")
    table.add_row("peak", gigabytes(memory.peak_bytes), f"{memory.share:.1%}")
    verdict, style = ("fits", "bold green") if memory.fits else ("does not fit", "bold red")
    most = "" if memory.highest_share == 1 else f"of which a process takes {memory.highest_share:.0%} at most"
    table.add_row(Text(verdict, style=style), gigabytes(memory.hbm_bytes), most)
    if memory.needs_setting:
        fraction = min(memory.highest_share, memory.share + 0.05)
        setting = f"set XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:.2f} in the job's environment"
        table.add_row("what JAX takes", f"{memory.usable_share:.0%}", Text(setting, style="yellow"))
    if memory.host_bytes:
        table.add_row("of its host's memory", gigabytes(memory.host_bytes), "")
    return Group(table, bar)


def misfit(plan: ProgramPlan, chip: Chip) -> RenderableType:
    """A program that does not fit: by how much, the known parts, and what helps."""
    known, over = {**plan.known_bytes, **plan.beside_bytes}, plan.needs_bytes - chip.hbm_bytes
    title = (
        f"does not fit: needs {gigabytes(plan.needs_bytes)} of memory per device, {chip.name} has "
        f"{gigabytes(chip.hbm_bytes)}: {gigabytes(over)} too much"
    )
    table = _table("of that", ("part", "bytes", "of the device"))
    rest = "the rest: activations, gradients, gathered parameters"
    for name, size in {**known, rest: plan.needs_bytes - sum(known.values())}.items():
        table.add_row(name, gigabytes(size), f"{size / chip.hbm_bytes:.1%}")
    lines = [f"- {line}" for line in remedies(plan, chip)]
    return Group(Text(title, style="red"), table, Text("\n".join(["What helps", *lines])))


def remedies(plan: ProgramPlan, chip: Chip) -> list[str]:
    """Settings that make a program smaller, the cheapest first; only those that can be enough."""
    more = "more devices: a larger topology with mesh.fsdp (or mesh.tensor) to match, so each holds less of the state"
    if plan.section != "serve" and plan.kind in ("prefill", "decode"):
        lengths = f"{plan.section}.max_prompt_tokens and {plan.section}.max_completion_tokens"
        return [
            f"fewer slots or shorter contexts: {plan.section}.num_slots, {lengths} (the cache is their product)",
            more,
        ]
    if plan.section == "serve":
        return [
            "fewer slots or a shorter context: serve.num_slots, serve.max_seq_len (the cache is their product)",
            "more devices: a larger topology with serve.mesh.tensor to match, which divides the model's key heads; "
            "beyond that serve.mesh.fsdp, which gathers each layer's weights in every step",
            "a chip with more memory",
        ]
    if sum(plan.known_bytes.values()) + sum(plan.beside_bytes.values()) >= chip.hbm_bytes:
        return [f"the state alone does not fit, however few activations are kept: {more}"]
    stage = plan.section
    rate = f", at {chip.host_bytes_per_s / 1e9:,.0f} GB/s" if chip.host_bytes_per_s else ""
    return [
        f"fewer rows at once: twice {stage}.grad_accum halves what layers keep, and gathers parameters twice as often",
        f"keep less: {stage}.remat={{}} keeps a layer's input only and computes the rest again",
        f"offload: {stage}.remat={{input: offload}} moves it to the host's memory{rate}",
        f"logits by parts: a larger {stage}.loss_chunks, where the vocabulary is large",
        more,
    ]


def work_table(step: StepEstimate, budget: TrainingBudget | InferenceBudget | None) -> Table:
    """Cycles, products, kernels and memory traffic, next to what the model itself needs."""
    table = _table("work per device and run", ("", "", ""))
    products = step.product_cycles / step.cycles if step.cycles else 0.0
    table.add_row(
        "compute cycles", f"{step.cycles / 1e6:,.0f} M", f"{products:.0%} in matrix products; {step.cycles_source}"
    )
    narrow = f", {step.narrow_flops / step.matmul_flops:.0%} of 8-bit values" if step.narrow_flops else ""
    table.add_row("matrix products", flops(step.matmul_flops), f"outside kernels{narrow}")
    for name in dict.fromkeys(kernel.name for kernel in step.kernels):
        table.add_row(f"kernel {name}", *_kernel_cells([k for k in step.kernels if k.name == name]))
    if budget is not None:
        table.add_row("the model's own", flops(budget.model_flops), "causal attention counted half")
    if isinstance(budget, TrainingBudget):
        above = "products above the model's own, kernels too"
        table.add_row("recomputation", f"{budget.recompute_overhead:.1%}", above)
    table.add_row("memory traffic", gigabytes(step.hbm_traffic_bytes), "our count, approximate")
    return table


def _kernel_cells(kernels: Sequence[KernelWork]) -> tuple[str, str]:
    """FLOPs, calls and bytes of the kernels of one name."""
    is_known = all(kernel.flops is not None for kernel in kernels)
    total = sum(k.total_flops for k in kernels)
    products = "unknown" if not is_known else flops(total) if total else "no products"
    moved = gigabytes(sum(k.calls * k.hbm_bytes for k in kernels))
    return products, f"{sum(k.calls for k in kernels):,} calls, {moved} of operands and results"


def network_table(step: StepEstimate) -> Table:
    """Collectives, and copies to and from the host, by kind and axes."""
    columns = ("collective or copy", "axes", "runs", "payload", "with work meanwhile", "alone it takes")
    table = _table("network, and link to the host, per device and run", columns)
    for row in step.traffic:
        overlapped = f"{row.overlapped_bytes / row.payload_bytes:.0%}" if row.payload_bytes else ""
        cells = (row.kind, " ".join(row.axes), f"{row.runs:,}", gigabytes(row.payload_bytes), overlapped)
        table.add_row(*cells, milliseconds(row.seconds))
    return table


def step_table(step: StepEstimate, budget: TrainingBudget | InferenceBudget | None, is_prompt: bool = False) -> Table:
    """The expected step, how it is derived, and what it means for a run."""
    times, table = step.times, _table("expected run of the program", ("", "", ""))
    table.add_row("compute", milliseconds(times.compute_s), "cycles at the chip's clock")
    table.add_row(
        "kernels", milliseconds(times.kernel_s), "products at the assumed share of the peak, or memory's rate"
    )
    table.add_row("waiting for the network", milliseconds(times.exposed_s), f"of {milliseconds(times.network_s)} busy")
    if step.host_roofline_s:
        waits = milliseconds(times.host_exposed_s)
        table.add_row("waiting for the host", waits, f"of {milliseconds(times.host_s)} of copies")
    if times.memory_exposed_s:
        table.add_row("waiting for the memory", milliseconds(times.memory_exposed_s), "for copies from or to HBM")
    table.add_row(Text("step", style="bold"), milliseconds(step.step_s), _range(step))
    rooflines = (
        ("products", step.compute_roofline_s, "all products at the peak"),
        ("memory", step.hbm_roofline_s, "all traffic, as we count it, at the memory's rate"),
        ("network", step.network_roofline_s, "one collective after the other"),
        ("host", step.host_roofline_s, "one copy after the other"),
    )
    for name, seconds, meaning in rooflines:
        if seconds or name != "host":
            above = Text(f"{meaning}: above the expected step", style="yellow") if seconds > step.step_s else meaning
            table.add_row(f"roofline: {name}", milliseconds(seconds), above)
    if isinstance(budget, TrainingBudget):
        _add_training(table, budget)
    elif budget is not None:
        _add_inference(table, budget, is_prompt)
    return table


def _add_training(table: Table, budget: TrainingBudget) -> None:
    table.add_row("tokens/s", f"{budget.tokens_per_s:,.0f}", f"{budget.tokens_per_s_per_chip:,.0f} per chip")
    full = f"{budget.mfu_full_attention:.1%} with attention's full square"
    table.add_row("MFU", f"{budget.mfu:.1%}", f"causal attention counted half; {full}")
    money = "no price known" if budget.money is None else f"{budget.money:,.0f} USD at the list price"
    if budget.tokens:
        table.add_row("the run", f"{budget.days:,.2f} days", f"{budget.tokens:,} tokens; {money}")
    else:
        table.add_row("the run", "", "its steps follow from its epochs, once its rows are made")


def _add_inference(table: Table, budget: InferenceBudget, is_prompt: bool) -> None:
    kind = "prompt tokens" if is_prompt else "tokens"
    runs = (
        f"in chunks, {budget.tokens_per_run:,} a run"
        if is_prompt
        else f"one for each of {budget.tokens_per_run:,} slots"
    )
    table.add_row(f"{kind}/s", f"{budget.tokens_per_s:,.0f}", f"{runs}; {budget.tokens_per_s_per_chip:,.0f} per chip")
    meaning = "to the first token, for each chunk" if is_prompt else "from a slot's token to its next"
    table.add_row("ms a chunk" if is_prompt else "ms a token", f"{budget.ms_per_run:,.3f} ms", meaning)
    table.add_row("MFU", f"{budget.mfu:.1%}", "causal attention counted half")
    if not is_prompt:
        read = f"{gigabytes(budget.weights_bytes)} of weights in use, {gigabytes(budget.cache_bytes)} of cache"
        table.add_row("floor: memory", milliseconds(budget.floor_s), f"{read}, read once at the memory's rate")
        table.add_row("of the memory's rate", f"{budget.hbm_share:.1%}", "the floor over the expected step")
    price = budget.usd_per_million_tokens
    money = "no price known" if price is None else f"{price:,.4f} USD"
    table.add_row(f"10^6 {kind}", money, "at the list price, all slots busy, without the host's part of the engine")


def spenders_table(plan: ProgramPlan, most: int = 8) -> Table:
    """The operations that take the most cycles."""
    table = _table("cycles by what the code was doing", ("operation", "kind", "cycles", "share"))
    total = plan.estimate.cycles if plan.estimate else 0
    for spender in plan.spenders[:most]:
        kind = "product" if spender.is_product else ""
        table.add_row(spender.operation, kind, f"{spender.cycles / 1e6:,.1f} M", f"{spender.cycles / total:.1%}")
    return table


def _range(step: StepEstimate) -> str:
    return f"between {milliseconds(step.fastest_s)} and {milliseconds(step.slowest_s)}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right" if column else "left", overflow="fold")
    return table
