"""The terminal that commands print on."""

from typing import Any

from rich.console import Console


def terminal(**options: Any) -> Console:
    """The terminal, with Rich's options, on which names are printed as they are: `web:locked:` is no picture."""
    return Console(emoji=False, **options)
