"""`lifecycle usage`: the served requests and their cost."""

from rich.console import Console
from rich.table import Table

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.ops import monitor
from lifecycle.ops.registry import RegistryError


def usage(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Prints requests, tokens, cost and latency by day and version."""
    log = read_config(config, overrides).request_log_path
    if not log.is_file():
        raise RegistryError(f"{log}: no request was served yet; start the server with: lifecycle serve CONFIG")
    table = Table(box=None, header_style="bold")
    for column in ("day", "version", "requests", "refused", "errors", "tokens in", "tokens out", "device s", "cost"):
        table.add_column(column, justify="right")
    for row in monitor.usage(log):
        table.add_row(
            row.day, row.version[:12], f"{row.requests:,}", f"{row.refused:,}", f"{row.errors:,}",
            f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}", f"{row.device_s:.2f}",
            f"{row.cost:.6f} {row.currency}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    ended = (
        " ".join(filter(None, (str(status), reason, f"{n:,}"))) for (status, reason), n in monitor.endings(log).items()
    )
    console.print(f"{'endings':<12} {'  '.join(ended)}", highlight=False)
    for title, values in (
        ("latency", monitor.percentiles(log, "latency_s")),
        ("first token", monitor.percentiles(log, "first_token_s")),
    ):
        text = "  ".join(f"p{percent:g} {value * 1e3:.0f} ms" for percent, value in values.items())
        console.print(f"{title:<12} {text}", highlight=False)
