"""JSON files that hold a mapping."""

import json
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError


def read_json(path: Path, error: type[ValueError] = ConfigError, fix: str = "copy it again") -> dict[str, Any]:
    """Reads a JSON file with a mapping; raises `error`, with the fix, if it is damaged or contains anything else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as issue:
        raise error(f"{path}: not valid JSON: {issue}; {fix}") from None
    if not isinstance(tree, dict):
        raise error(f"{path}: expected a mapping, got {type(tree).__name__}; {fix}")
    return tree
