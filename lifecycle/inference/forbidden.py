"""Sequences of tokens that an output must not have: bad words, and the ids that would end it before `min_tokens`.

A sequence's last token is impossible where the tokens before it are the newest ones of the row, prompt included, as in
transformers (`NoBadWordsLogitsProcessor`). What must hold: no output has one, whatever else the row asks for; where
nothing else is possible its request fails by name.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Int

MAX_FORBIDDEN = 64  # sequences of a request; their room is 4 KB of a row
MAX_FORBIDDEN_LENGTH = 16  # tokens of one
NO_TOKEN = 2**31 - 1  # an id above any vocabulary: there is no sequence
ANY = -1  # before a sequence that is shorter; and before a context's first token
FOREVER = 2**31 - 1  # a position behind all others

type Forbidden = tuple[Sequence[int], int]  # a sequence, and the first position that its last token may have


class ForbiddenError(ValueError):
    """Bad words or a minimal length (`setting`) that do not fit, or leave an output no token."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting = setting


def forbidden_rows(every: Sequence[Forbidden]) -> tuple[np.ndarray, np.ndarray]:
    """As `without_forbidden` takes them: `[MAX_FORBIDDEN, MAX_FORBIDDEN_LENGTH]` and `[MAX_FORBIDDEN]`."""
    words = np.full((MAX_FORBIDDEN, MAX_FORBIDDEN_LENGTH), ANY, np.int32)
    words[:, -1] = NO_TOKEN
    until = np.zeros(MAX_FORBIDDEN, np.int32)
    for place, (ids, end) in enumerate(every):
        words[place, -len(ids) :], until[place] = ids, end
    return words, until


def newest(tokens: Sequence[int]) -> np.ndarray:
    """The tokens before the next one, `[MAX_FORBIDDEN_LENGTH - 1]`; `ANY` where there are fewer."""
    found = np.full(MAX_FORBIDDEN_LENGTH - 1, ANY, np.int32)
    last = tokens[-found.size :]
    found[found.size - len(last) :] = last
    return found


def without_forbidden(
    words: Int[Array, "B 64 16"],
    until: Int[Array, "B 64"],
    recent: Int[Array, "B 15"],
    positions: Int[Array, " B"],
    _: Any,
    logits: Float[Array, "B V"],
) -> Float[Array, "B V"]:
    """Logits with -inf for the last tokens of sequences whose other tokens are the `recent` ones, up to the position
    `until`."""
    before, last = words[:, :, :-1], words[:, :, -1]
    is_next = ((before == recent[:, None]) | (before == ANY)).all(-1) & (positions[:, None] < until)
    row = jnp.arange(logits.shape[0])[:, None]
    return logits.at[row, jnp.where(is_next, last, NO_TOKEN)].set(-jnp.inf, mode="drop")


class Guard:
    """Sees an output's tokens, and raises `ForbiddenError` for one that ends a forbidden sequence: it is sampled only
    where nothing else is possible."""

    def __init__(self, every: Sequence[Forbidden], prompt: Sequence[int]) -> None:
        self._every = every
        self._recent = deque(prompt[-MAX_FORBIDDEN_LENGTH:], MAX_FORBIDDEN_LENGTH)
        self._position = len(prompt)

    def push(self, token: int) -> None:
        """Adds the output's next token."""
        self._recent.append(token)
        if any(_ends_with(self._recent, ids) for ids in self._holding()):
            raise ForbiddenError("bad_words", "they, or min_tokens, leave no token that may come next")
        self._position += 1

    def _holding(self) -> Iterator[Sequence[int]]:
        return (ids for ids, until in self._every if self._position < until)


def _ends_with(tokens: deque[int], ids: Sequence[int]) -> bool:
    return len(ids) <= len(tokens) and all(tokens[-place] == ids[-place] for place in range(1, len(ids) + 1))
