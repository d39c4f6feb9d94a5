"""`lifecycle promote`: moves a version to production."""

from rich.console import Console

from lifecycle.cli.arguments import ConfigPath, Overrides, operator, read_config
from lifecycle.ops import gates
from lifecycle.ops.registry import Registry


def promote(config: ConfigPath, version: str, /, *overrides: Overrides) -> None:
    """Moves `production` to a version if the gate passes; raises `GateRefused` with the report otherwise."""
    run = read_config(config, overrides)
    registry, why = Registry(run.registry_path), "promoted by hand"
    report, move = gates.promote(registry, version, who=operator(), why=why, config=run.gate)
    Console().print(f"{report}\n{move}", markup=False, highlight=False)
