"""`lifecycle data plan`: what a corpus takes, from a sample of it."""

import re
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import print_json
from lifecycle.cli.documents import CorpusName, chosen_corpus
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError
from lifecycle.data.inspecting.outlook import Outlook, outlook_of

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_SIZE = re.compile(r"([\d.]+) ?(MB|GB|TB|PB)")

type Total = Annotated[str | None, Parameter(help="Of such a corpus, such as 100TB; that of the sources by default.")]
type Cores = Annotated[int, Parameter(help="That work at the same time.", validator=Number(gte=1))]
type Price = Annotated[float, Parameter(help="Of a core for an hour.", validator=Number(gte=0))]


def plan(
    config: ConfigPath, /, *overrides: Overrides, total: Total = None, cores: Cores = 1, price: Price = 0.0,
    corpus: CorpusName = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measures a sample of the sources and prints what all of them take: documents, cores, hours, disk, money."""
    run = read_config(config, overrides)
    data = run.corpora[chosen_corpus(run, corpus)]
    found = outlook_of(data, None if total is None else _bytes_of(total), run.seed)
    if as_json:
        print_json({**asdict(found), "cpu_hours": found.cpu_hours, "hours": found.cpu_hours / cores,
                    "cost": found.cpu_hours * price})  # fmt: skip
        return
    _show(terminal(), found, cores, price)


def _bytes_of(total: str) -> int:
    match = _SIZE.fullmatch(total.strip())
    if not match:
        raise ConfigError(f"--total {total}: give a number with MB, GB, TB or PB, such as 100TB")
    return int(float(match[1]) * _UNITS[match[2]])


def _show(console: Console, found: Outlook, cores: int, price: float) -> None:
    console.print(
        f"measured on {found.sample_bytes / 1e6:,.1f} MB ({found.sample_documents:,} documents), for "
        f"{_sized(found.num_bytes)} of input"
    )
    table = Table(box=None, header_style="bold")
    for column in ("step", "MB per core-second", "core-hours"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, seconds in found.cpu_s.items():
        table.add_row(step, f"{found.rate(step):,.1f}", f"{seconds / 3600:,.2f}")
    table.add_row("all", f"{found.num_bytes / 1e6 / (found.cpu_hours * 3600):,.2f}", f"{found.cpu_hours:,.2f}")
    console.print(table)
    console.print(
        f"{found.num_partitions:,} partitions, {found.num_documents:,} documents, {found.num_kept:,} to train on"
    )
    console.print(f"disk: {_listed(found.disk_bytes)}")
    moved = found.shuffle
    console.print(f"while documents are compared, on disk: {_listed(moved.disk_bytes)}")
    console.print(
        f"on a cluster over the network: {_listed(moved.network_bytes)}; keys are read {moved.num_passes:,} times"
    )
    console.print(
        f"of the sample's documents {moved.candidate_share:.1%} are compared whole, of a larger corpus more; memory of "
        f"the process that compares: {_sized(moved.memory_bytes)}"
    )
    console.print(f"token shards are shuffled in processes of up to {_sized(found.shard_memory_bytes)} each")
    money = f", {found.cpu_hours * price:,.2f} at {price:g} an hour" if price else ""
    console.print(f"time: {found.cpu_hours / cores:,.2f} hours on {cores:,} cores{money}")


def _listed(sizes: dict[str, int]) -> str:
    """The sum, and what it is of."""
    return f"{_sized(sum(sizes.values()))} ({', '.join(f'{what} {_sized(count)}' for what, count in sizes.items())})"


def _sized(count: float) -> str:
    name, unit = next(((name, unit) for name, unit in reversed(_UNITS.items()) if count >= unit), ("MB", 10**6))
    return f"{count / unit:,.1f} {name}"
