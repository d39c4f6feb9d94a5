"""`lifecycle schema`: the JSON schema of a run file."""

import json
import sys

from lifecycle.stages.config import RunConfig


def schema() -> None:
    """Prints the schema, which editors use to complete and check a run file."""
    json.dump(RunConfig.model_json_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")
