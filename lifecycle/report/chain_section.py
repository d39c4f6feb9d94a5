"""The sections on samples, the version, the chain of artifacts with its costs, and the machine."""

from collections.abc import Mapping
from typing import Any

from lifecycle.report.blocks import Exchange, Exchanges, Facts, Paragraph, ReportSection, Table, Verbatim
from lifecycle.report.format import duration, moment, money
from lifecycle.report.numbers import Numbers

SHOWN_HASH = 12


def samples_section(samples: tuple[Exchange, ...]) -> ReportSection:
    """Answers of the final model."""
    text = "Held-out questions, chosen by the hash of their rows, and the exported model's answers (greedy decoding)."
    return ReportSection("samples", "Samples", (Paragraph(text), Exchanges(tuple(sample.said for sample in samples))))


def version_section(version: Mapping[str, Any]) -> ReportSection:
    """The registered version, with the gate's report."""
    facts = (
        ("version", version["version"]),
        ("alias", "production and candidate" if version["promoted"] else "candidate"),
    )
    return ReportSection("version", "Version", (Facts(facts), Verbatim("Promotion gate", version["gate"])))


def chain_section(numbers: Numbers) -> ReportSection:
    """Every artifact, with its cost."""
    currency = numbers.price.currency
    columns = ("stage", "key", "content", "made from", "created (UTC)", "wall time", "core-seconds", "cost")
    rows = [
        (
            link.stage, link.key[:SHOWN_HASH], link.content_hash[:SHOWN_HASH], ", ".join(link.inputs),
            moment(link.created), duration(link.wall_s), f"{link.core_s:,.1f}", money(link.money, currency),
        )
        for link in numbers.links
    ]  # fmt: skip
    total = (duration(numbers.wall_s), f"{numbers.core_s:,.1f}", money(numbers.money, currency))
    rows.append(("all", "", "", "", "", *total))
    table = Table("Artifacts, in the order of the chain", columns, tuple(rows), columns[-3:])
    text = (
        f"A core-hour is priced at {numbers.price.core_hour:g} {currency}. Each artifact's cost includes killed "
        "runs of its stage; the cost of this report is not in the table."
    )
    return ReportSection("chain", "Chain and cost", (table, Paragraph(text)))


def machine_section(numbers: Numbers) -> ReportSection:
    """The machine, the code and the libraries."""
    return ReportSection("machine", "Machine and versions", (Facts((*_code(numbers), *numbers.machine.items())),))


def _code(numbers: Numbers) -> list[tuple[str, str]]:
    """The version of the code; if there are several, each with the stages that it made."""
    made: dict[str, list[str]] = {}
    for link in numbers.links:
        made.setdefault(link.code, []).append(link.stage)
    if len(made) == 1:
        return [("code", code) for code in made]
    return [(f"code of {', '.join(stages)}", code) for code, stages in made.items()]
