"""Stop strings in a stream of text.

What must hold: the output does not depend on how the text is cut into pieces: it ends before the stop string that is
complete first (of two that end together, the longer one). A piece that may begin a stop string is held back.
"""

from collections.abc import Sequence

from lifecycle.text.parts import possible_start


class StopBuffer:
    """`push` text to get the text that can no longer change; `is_stopped` is true after a (non-empty) stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that can no longer become part of a stop string. Nothing follows a stop."""
        if self.is_stopped or not text:
            return ""
        self._held += text
        stop = self._first_stop()
        if stop is not None:
            self.is_stopped = True
            return self._release(stop)
        return self._release(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """The text that was held back; nothing after a stop."""
        return "" if self.is_stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _first_stop(self) -> int | None:
        """The start of the stop string that ends first, if any is complete."""
        starts = ((self._held.find(stop), stop) for stop in self._stops)
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        return min(ends)[1] if ends else None

    def _possible_start(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        return max((possible_start(self._held, stop) for stop in self._stops), default=0)
