"""The operator's verbs: which versions there are, move an alias, take it back, what the requests cost."""

import os

from rich.console import Console
from rich.table import Table

from lifecycle.cli.serve import REQUESTS
from lifecycle.ops.gates import promote as move_if_allowed
from lifecycle.ops.monitor import endings, percentiles, usage
from lifecycle.ops.registry import RegistryError
from lifecycle.stages.config import RunConfig
from lifecycle.stages.register import PRODUCTION, open_registry


def show_versions(config: RunConfig) -> None:
    """Prints versions, oldest first, with the aliases that point to them and their evaluations."""
    registry = open_registry(config)
    names: dict[str, list[str]] = {}
    for alias, version in registry.aliases().items():
        names.setdefault(version, []).append(alias)
    table = Table(box=None, header_style="bold")
    for column in ("version", "registered", "aliases", "evaluations"):
        table.add_column(column, overflow="fold")
    for version in registry.versions():
        scores = "  ".join(f"{task} {result.mean:.3f}" for task, result in registry.evaluations(version.hash).items())
        table.add_row(version.short, version.registered, ", ".join(names.get(version.hash, [])), scores)
    Console().print(table)


def promote(config: RunConfig, version: str) -> None:
    """Moves `production` to a version if the gate lets it; raises `GateRefused` with the report otherwise."""
    report, move = move_if_allowed(
        open_registry(config), version, who=_who(), why="promoted by hand", config=config.gate
    )
    Console().print(f"{report}\n{move}", markup=False, highlight=False)


def rollback(config: RunConfig) -> None:
    """Moves `production` back to where it was before."""
    move = open_registry(config).rollback(PRODUCTION, who=_who(), why="rolled back by hand")
    Console().print(str(move), markup=False, highlight=False)


def show_usage(config: RunConfig) -> None:
    """Prints requests, tokens, cost and latency by day and version."""
    log = config.folder / REQUESTS
    if not log.is_file():
        raise RegistryError(f"{log}: no request was served yet; start the server with: lifecycle serve CONFIG")
    table = Table(box=None, header_style="bold")
    for column in ("day", "version", "requests", "refused", "errors", "tokens in", "tokens out", "device s", "cost"):
        table.add_column(column, justify="right")
    for row in usage(log):
        table.add_row(
            row.day, row.version[:12], f"{row.requests:,}", f"{row.refused:,}", f"{row.errors:,}",
            f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}", f"{row.device_s:.2f}",
            f"{row.cost:.6f} {row.currency}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    ended = (" ".join(filter(None, (str(status), reason, f"{n:,}"))) for (status, reason), n in endings(log).items())
    console.print(f"{'endings':<12} {'  '.join(ended)}", highlight=False)
    for title, found in (
        ("latency", percentiles(log, "latency_s")),
        ("first token", percentiles(log, "first_token_s")),
    ):
        text = "  ".join(f"p{percent:g} {value * 1e3:.0f} ms" for percent, value in found.items())
        console.print(f"{title:<12} {text}", highlight=False)


def _who() -> str:
    """The user for the history; a container's user may have no name."""
    return os.environ.get("USER") or f"uid {os.getuid()}"
