"""`lifecycle run`: the whole run, or up to one of its stages."""

from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared

type Until = Annotated[str | None, Parameter(help="The stage to stop after: a training stage, documents, tokens, ...")]


@errors_are_shared()
def run(config: ConfigPath, /, *overrides: Overrides, until: Until = None) -> None:
    """Brings the report up to date, and so the whole run; with `until`, one stage and its inputs."""
    make(read_config(config, overrides), [until or "report"], [str(config), *overrides])
