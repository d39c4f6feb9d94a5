"""`lifecycle usage`: the served requests and their cost."""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import print_json
from lifecycle.cli.terminal import terminal
from lifecycle.ops import monitor
from lifecycle.ops.registry import RegistryError

COLUMNS = ("day", "version", "requests", "4xx", "5xx", "tokens in", "out", "device s", "cost")
SHOWN_HASH = 8  # the table fits 80 columns


def usage(config: ConfigPath, /, *overrides: Overrides, as_json: AsJson = False) -> None:
    """Prints requests, tokens, cost and latency by day and version."""
    log = read_config(config, overrides).request_log_path
    if not log.is_file():
        raise RegistryError(f"{log}: no request was served yet; start the server with: lifecycle serve CONFIG")
    if as_json:
        print_json(_plain(log))
        return
    console = terminal()
    console.print(_table(log))
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


def _table(log: Path) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in monitor.usage(log):
        table.add_row(
            row.day, row.version[:SHOWN_HASH], f"{row.requests:,}", f"{row.refused:,}", f"{row.errors:,}",
            f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}", f"{row.device_s:,.1f}",
            f"{_amount(row.cost)} {row.currency}",
        )  # fmt: skip
    return table


def _amount(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 1 or not cost else f"{cost:.3g}"


def _plain(log: Path) -> dict[str, object]:
    return {
        "days": [asdict(row) for row in monitor.usage(log)],
        "endings": [
            {"status": status, "finish_reason": reason, "requests": number}
            for (status, reason), number in monitor.endings(log).items()
        ],
        "latency_s": {f"p{percent:g}": value for percent, value in monitor.percentiles(log, "latency_s").items()},
        "first_token_s": {
            f"p{percent:g}": value for percent, value in monitor.percentiles(log, "first_token_s").items()
        },
    }
