"""`lifecycle export`: writes a training stage's weights as a bundle and registers it."""

from lifecycle.cli.arguments import ConfigPath, StageOrOverrides, name_first, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared


@errors_are_shared()
def export(config: ConfigPath, /, *stage_or_overrides: StageOrOverrides) -> None:
    """Exports and registers a training stage's weights, by default those of `export.of`."""
    stage, overrides = name_first(stage_or_overrides)
    chosen = () if stage is None else (f"export.of={stage}",)
    make(read_config(config, (*overrides, *chosen)), ["export", "register"], [str(config), *overrides])
