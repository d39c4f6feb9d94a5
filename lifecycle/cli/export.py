"""`lifecycle export`: a training stage's weights as a bundle, registered."""

from lifecycle.cli.arguments import ConfigPath, StageOrOverrides, name_first, read_config
from lifecycle.cli.make import make


def export(config: ConfigPath, /, *stage_or_overrides: StageOrOverrides) -> None:
    """Brings the bundle of a training stage up to date, by default of the one in `export.of`, and its registration."""
    stage, overrides = name_first(stage_or_overrides)
    chosen = () if stage is None else (f"export.of={stage}",)
    make(read_config(config, (*overrides, *chosen)), ["export", "register"], [str(config), *overrides])
