"""`lifecycle tokenizer`: the run's tokenizer."""

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared


@errors_are_shared()
def tokenizer(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the tokenizer up to date."""
    make(read_config(config, overrides), ["tokenizer"], [str(config), *overrides])
