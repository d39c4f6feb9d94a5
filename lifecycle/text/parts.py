"""What an answer consists of: text, thoughts, calls of tools.

The machines that take an answer apart (`thoughts.py`, `calls.py`) are fed text as it comes and return parts; `flush`
returns what they held back. What must hold: however the text is cut, the joined parts are the same, and so are those of
a stream and of a whole answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Literal


@dataclass(frozen=True)
class Part:
    """A piece of an answer. Of a call, the first piece has the tool's name, and `text` is of its arguments."""

    kind: Literal["text", "thought", "call"]
    text: str
    call: int = -1  # its number in the answer
    name: str | None = None


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same parts with neighbours of one kind, and of one call, in one piece."""
    groups = (list(group) for _, group in groupby(parts, key=attrgetter("kind", "call")))
    whole = (replace(group[0], text="".join(part.text for part in group)) for group in groups)
    return [part for part in whole if part.text or part.kind == "call"]


def possible_start(text: str, mark: str) -> int:
    """Length of the longest suffix of the text with which `mark` may begin, but for the whole mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
