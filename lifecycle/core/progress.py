"""Progress reporting: a sink with three calls, silent unless a front end replaces it."""

from typing import Any, Protocol


class Progress(Protocol):
    """Receives a stage's progress. `total` and `done` count the same unit (files, steps, requests).

    `start` names a stage or a part of one; `update` may give the total once it is known.
    """

    def start(self, stage: str, total: int | None = None) -> None:
        """A stage begins; `total` steps are expected, None if unknown."""
        ...

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """`done` steps are finished; `metrics` are shown with them."""
        ...

    def note(self, text: str) -> None:
        """A line of text for the user."""
        ...


class Silent:
    """Discards progress: for tests and for library use."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Shows nothing."""
        del stage, total

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Shows nothing."""
        del done, total, metrics

    def note(self, text: str) -> None:
        """Shows nothing."""
        del text
