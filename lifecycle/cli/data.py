"""`lifecycle data`: the data of the training stages."""

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared
from lifecycle.stages.graph import build_graph, present


@errors_are_shared()
def data(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the run's documents, token shards and rows up to date; rows only if there is something to make them of."""
    run = read_config(config, overrides)
    rows = ["rows"] if run.has_rows else []
    make(run, present(build_graph(run), "documents", "tokens", *rows), [str(config), *overrides])
