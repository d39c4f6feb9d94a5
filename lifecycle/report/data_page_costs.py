"""The section on what making documents has cost: by stage, and by step."""

from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.ops.cost import PriceConfig
from lifecycle.report.blocks import Block, Paragraph, ReportSection, Table
from lifecycle.report.format import duration, money, share, size

REST = "everything else"  # that a stage has spent
LEAST_S = 0.05  # of which a speed is told: the clock of several processes has ticks of 10 ms


def costs_section(
    tagging: Artifact, documents: Artifact, tokens: Artifact | None, read: Mapping[str, Any], price: PriceConfig
) -> ReportSection:
    """Speed and cost. `read`: the first step of the funnel."""
    made = [(tagging, read["bytes_in"]), (documents, read["bytes_out"])]
    if tokens is not None:
        made.append((tokens, sum(split["text_bytes"] for split in tokens.stats["splits"].values())))
    blocks: list[Block] = [_stages(made, price)]
    blocks.append(
        Paragraph(
            f"A core costs {price.core_hour:g} {price.currency} an hour. Tagging counts what its own runs have read, "
            "killed ones included; partitions that were there before cost it nothing."
        )
    )
    blocks += steps_table((tagging, documents), price)
    return ReportSection("cost", "Speed and cost", tuple(blocks))


def _stages(made: list[tuple[Artifact, int]], price: PriceConfig) -> Table:
    rows = []
    for artifact, num_bytes in made:
        m = artifact.manifest
        rows.append((m.stage, size(num_bytes), duration(m.wall_s), *_spent(m.cpu_s, num_bytes, price)))
    columns = ("stage", "input", "wall time", "core-seconds", "MB per core-second", "cost", "cost per GB")
    return Table("Speed and cost of each stage", columns, tuple(rows), columns[1:])


def steps_table(artifacts: tuple[Artifact, ...], price: PriceConfig) -> Iterator[Block]:
    """Speed and cost of the steps of stages that have recorded them; nothing if none has."""
    rows = [row for artifact in artifacts for row in _steps_of(artifact, price)]
    if rows:
        columns = ("stage", "step", "input", "share of its stage")
        columns += ("core-seconds", "MB per core-second", "cost", "cost per GB")
        yield Table("Speed and cost of each step", columns, tuple(rows), columns[2:])
        yield Paragraph(
            "A step's input is what the run that finished its stage gave it: in tagging the files of partitions that "
            f"this run made itself. What was not measured, or took under {LEAST_S} core-seconds, has no speed. Loading "
            "and compiling count for the step that needs them first, so little input looks slow. In "
            f"{REST} are starting, listing and hashing files, and killed runs."
        )


def _steps_of(artifact: Artifact, price: PriceConfig) -> Iterator[tuple[str, ...]]:
    m = artifact.manifest
    steps = m.how[-1].get("steps", {}) if m.how else {}
    known = {step: of["cpu_s"] for step, of in steps.items() if of["cpu_s"] is not None}
    for step, of in steps.items():
        spent = _spent(known[step], of["bytes"], price) if step in known else ("",) * 4
        part = share(known[step] / max(m.cpu_s, 1e-9)) if step in known else ""
        yield (m.stage, step.replace("_", " "), size(of["bytes"]), part, *spent)
    if steps and len(known) == len(steps):
        rest = max(0.0, m.cpu_s - sum(known.values()))
        yield (m.stage, REST, "", share(rest / max(m.cpu_s, 1e-9)), *_spent(rest, 0, price))


def _spent(cpu_s: float, num_bytes: int, price: PriceConfig) -> tuple[str, str, str, str]:
    """Core-seconds, speed, cost and that of a GB; without bytes or measurable time there is no speed."""
    cost = price.money(cpu_s)
    is_known = num_bytes > 0 and cpu_s >= LEAST_S
    speed = f"{num_bytes / 1e6 / cpu_s:,.2f}" if is_known else ""
    of_gb = money(cost / num_bytes * 1e9, price.currency) if is_known else ""
    return f"{cpu_s:,.2f}", speed, money(cost, price.currency), of_gb
