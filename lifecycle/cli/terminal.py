"""The terminal that commands print on."""

from typing import Any

from rich.console import Console


class Terminal(Console):
    """A terminal that leaves it to the program what a closed pipe means."""

    def on_broken_pipe(self) -> None:
        """Raises the error that is being handled; Rich would end the program with status 1, whatever the pipe."""
        raise


def terminal(**options: Any) -> Console:
    """The terminal, with Rich's options, on which names are printed as they are: `web:locked:` is no picture."""
    return Terminal(emoji=False, **options)
