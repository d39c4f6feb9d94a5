"""`lifecycle versions`: lists the registered versions."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import print_json
from lifecycle.cli.terminal import terminal
from lifecycle.ops.registry import Registry
from lifecycle.stages.storage import read_registry

SCORE = {"mean", "low", "high", "n", "metric"}


def versions(config: ConfigPath, /, *overrides: Overrides, as_json: AsJson = False) -> None:
    """Prints versions, oldest first, with the aliases that point to them and their evaluations."""
    run = read_config(config, overrides)
    read_registry(run)
    listed = _listed(Registry(run.registry_path))
    if as_json:
        print_json(listed)
        return
    table = Table(box=None, header_style="bold")
    for column in ("version", "registered", "aliases", "evaluations"):
        table.add_column(column, overflow="fold")
    for version in listed:
        scores = "  ".join(f"{task} {result['mean']:.3f}" for task, result in version["evaluations"].items())
        table.add_row(version["short"], version["registered"], ", ".join(version["aliases"]), scores)
    terminal().print(table)


def _listed(registry: Registry) -> list[Mapping[str, Any]]:
    names: dict[str, list[str]] = {}
    for alias, version in registry.aliases().items():
        names.setdefault(version, []).append(alias)
    return [
        {
            "version": version.hash,
            "short": version.short,
            "kind": version.kind,
            "path": str(version.path),
            "registered": version.registered,
            "aliases": names.get(version.hash, []),
            "evaluations": {
                task: result.model_dump(include=SCORE) for task, result in registry.evaluations(version.hash).items()
            },
        }
        for version in registry.versions()
    ]
