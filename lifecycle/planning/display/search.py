"""Displays a search: the compiled candidates, and all others by the reason against them."""

from collections.abc import Sequence

from rich.table import Table

from lifecycle.planning.display.units import gigabytes, milliseconds
from lifecycle.planning.search.reasons import CompiledCandidate, RejectedCandidate, RejectionKind, SearchResult

EXAMPLES = 3  # candidates shown for each kind of reason, the best first


def compiled_table(compiled: Sequence[CompiledCandidate]) -> Table:
    """Memory and time of each compiled candidate, by the compiler and by arithmetic."""
    table = Table(title="compiled", title_justify="left", box=None, header_style="bold")
    for column in ("candidate", "peak", "by arithmetic", "step", "by arithmetic", "cycles"):
        table.add_column(column, justify="left" if column == "candidate" else "right", overflow="fold")
    for c in compiled:
        estimate = c.plan.estimate
        step, cycles = "does not fit", ""
        if c.plan.fits and estimate is not None:
            step, cycles = milliseconds(estimate.step_s), f"{estimate.cycles / 1e6:,.0f} M"
        memory = gigabytes(c.plan.needs_bytes), gigabytes(c.forecast.footprint.total_bytes)
        table.add_row(c.candidate.name, *memory, step, milliseconds(c.forecast.step_s), cycles)
    return table


def rejected_table(result: SearchResult) -> Table:
    """The number of rejected candidates of each kind, and the best ones with the figures against them."""
    kinds: dict[RejectionKind, list[RejectedCandidate]] = {}
    for rejected in result.rejected:
        kinds.setdefault(rejected.kind, []).append(rejected)
    title = f"{result.num_candidates} candidates, {len(result.compiled)} compiled; the others, by reason"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("reason", "how many", "the best of them", ""):
        table.add_column(column, justify="right" if column == "how many" else "left", overflow="fold")
    for kind, members in kinds.items():
        for i, member in enumerate(members[:EXAMPLES]):
            head = (kind, str(len(members))) if i == 0 else ("", "")
            table.add_row(*head, member.name, member.reason)
    return table
