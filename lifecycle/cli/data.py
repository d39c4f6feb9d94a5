"""`lifecycle data`: the data of the training stages."""

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.stages.graph import build_graph, present


def data(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the run's documents, token shards and rows up to date."""
    run = read_config(config, overrides)
    make(run, present(build_graph(run), "documents", "tokens", "rows"), [str(config), *overrides])
