"""`lifecycle schema`: the JSON schema of a run file."""

from lifecycle.cli.display import print_json
from lifecycle.stages.config import RunConfig


def schema() -> None:
    """Prints the schema, which editors use to complete and check a run file."""
    print_json(RunConfig.model_json_schema())
