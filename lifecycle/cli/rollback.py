"""`lifecycle rollback`: moves production back to the previous version."""

from lifecycle.cli.arguments import ConfigPath, Overrides, operator, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.terminal import terminal
from lifecycle.ops.registry import Registry
from lifecycle.stages.names import PRODUCTION
from lifecycle.stages.storage import changing_registry


def rollback(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Moves `production` back to the previous version."""
    run, console = read_config(config, overrides), terminal()
    with progress_on(console) as progress, changing_registry(run, progress):
        move = Registry(run.registry_path).rollback(PRODUCTION, who=operator(), why="rolled back by hand")
    console.print(str(move), markup=False, highlight=False)
