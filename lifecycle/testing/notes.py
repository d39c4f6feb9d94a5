"""Progress that keeps what a user would read."""

from lifecycle.core.progress import Silent


class Notes(Silent):
    """Shows nothing and keeps the notes, in order, in `notes`."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keeps a line of text."""
        self.notes.append(text)
