"""`lifecycle run`: all of a run, or as far as one of its stages."""

from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make

type Until = Annotated[str | None, Parameter(help="The stage to stop after: a training stage, documents, tokens, ...")]


def run(config: ConfigPath, /, *overrides: Overrides, until: Until = None) -> None:
    """Brings the report up to date, and so all that the run makes; with `until`, one stage and what it needs."""
    make(read_config(config, overrides), [until or "report"], [str(config), *overrides])
