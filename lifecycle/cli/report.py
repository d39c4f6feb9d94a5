"""`lifecycle report`: the run's report."""

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared


@errors_are_shared()
def report(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the report and its inputs up to date."""
    make(read_config(config, overrides), ["report"], [str(config), *overrides])
