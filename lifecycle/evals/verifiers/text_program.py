"""Searches for patterns, in a process that may be ended."""

import re
from typing import Any

from lifecycle.core.isolation.confine import Limits


def is_found(item: dict[str, Any], limits: Limits) -> bool:
    """Whether `pattern` is found in `text`."""
    del limits
    return re.search(item["pattern"], item["text"]) is not None
