"""Validates JSON, in a process that may be ended: schemas have patterns."""

import json
import re
from typing import Any

from lifecycle.core.isolation.confine import Limits

try:
    import jsonschema
    import referencing
    from jsonschema.validators import validator_for
except ImportError:
    raise ImportError(
        "the verifier json_schema needs jsonschema; install the extra: pip install 'lifecycle[rl]'"
    ) from None

BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


def is_valid(item: dict[str, Any], limits: Limits) -> bool:
    """Whether `text` is JSON that `schema` accepts. Raises `jsonschema`'s errors for a schema that is none."""
    del limits
    found = BLOCK.fullmatch(item["text"])
    try:
        value = json.loads(found[1] if found else item["text"], parse_constant=_refused)
    except (ValueError, RecursionError):
        return False
    kind = validator_for(item["schema"], default=jsonschema.Draft202012Validator)
    kind.check_schema(item["schema"])
    return kind(item["schema"], registry=referencing.Registry()).is_valid(value)


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
