"""`lifecycle promote`: moves a version to production."""

from lifecycle.cli.arguments import ConfigPath, Overrides, operator, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.terminal import terminal
from lifecycle.ops import gates
from lifecycle.ops.registry import Registry
from lifecycle.stages.storage import changing_registry


def promote(config: ConfigPath, version: str, /, *overrides: Overrides) -> None:
    """Moves `production` to a version if the gate passes; raises `GateRefused` with the report otherwise."""
    run = read_config(config, overrides)
    console = terminal()
    with progress_on(console) as progress, changing_registry(run, progress):
        registry, why = Registry(run.registry_path), "promoted by hand"
        report, move = gates.promote(registry, version, who=operator(), why=why, config=run.gate)
    console.print(f"{report}\n{move}", markup=False, highlight=False)
