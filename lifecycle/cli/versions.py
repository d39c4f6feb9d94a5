"""`lifecycle versions`: lists the registered versions."""

from rich.console import Console
from rich.table import Table

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.ops.registry import Registry


def versions(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Prints versions, oldest first, with the aliases that point to them and their evaluations."""
    registry = Registry(read_config(config, overrides).registry_path)
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
