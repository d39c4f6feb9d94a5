"""`lifecycle rollback`: moves production back to the previous version."""

from rich.console import Console

from lifecycle.cli.arguments import ConfigPath, Overrides, operator, read_config
from lifecycle.ops.registry import Registry
from lifecycle.stages.config import PRODUCTION


def rollback(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Moves `production` back to the previous version."""
    registry = Registry(read_config(config, overrides).registry_path)
    move = registry.rollback(PRODUCTION, who=operator(), why="rolled back by hand")
    Console().print(str(move), markup=False, highlight=False)
