"""What the scheduler knows of requests: queued ones, and those that hold a slot."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lifecycle.inference.chunks import Chunk
from lifecycle.inference.pages import Row


class QueueFullError(RuntimeError):
    """The queue is full; try again later."""


class ClosedError(RuntimeError):
    """No more requests are accepted."""


class Request(Protocol):
    """The part of a request that the scheduler reads."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def max_tokens(self) -> int:
        """How many tokens it generates at most."""
        ...

    @property
    def priority(self) -> int:
        """Lower ones go first."""
        ...

    @property
    def cache_key(self) -> bytes:
        """What its cached tokens depend on beside the tokens: only requests with the same key share them."""
        ...

    @property
    def may_share(self) -> bool:
        """Whether cached tokens of its prompt need not be computed."""
        ...

    @property
    def twin_key(self) -> bytes | None:
        """What its prompt's computation depends on: of requests with the same key one may be computed for all. None:
        of no other."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to end at the next turn."""
        ...


@dataclass(eq=False)
class Asked[R: Request]:
    """An accepted request. It gets a slot where there are pages for its first `needed` tokens."""

    request: R
    number: int
    names: Sequence[bytes]
    twin_key: bytes | None
    needed: int
    passed: int = 0  # how many that came later have been admitted


@dataclass
class HeldSlot[R: Request]:
    """A slot's request, the chunks of its prompt that are not prefilled, its pages, and its tokens in the cache."""

    asked: Asked[R]
    row: Row
    length: int  # of its prompt, or of all tokens but the newest
    chunks: deque[Chunk] = field(default_factory=deque[Chunk])

    @property
    def age(self) -> tuple[int, int]:
        """Its place in the order of requests."""
        return self.asked.request.priority, self.asked.number

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of its prompt was computed for it."""
        return bool(self.chunks) and self.chunks[0].is_first


def most_tokens(request: Request) -> int:
    """The tokens that a request may have in the end."""
    return len(request.prompt) + request.max_tokens
