"""How prompts are cut: chunks of few lengths, by a prompt's own length alone, so that what is computed of a request
depends on no other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A chunk's padded length, for each of which prefill is compiled; of 135 M parameters in float32 on two cores they take
# 55, 150, 267 and 528 ms. Only whole chunks of the longest are cached, so a CPU, which gains nothing from 256, has 128.
BUCKETS = (16, 64, 128, 256)
CPU_BUCKETS = BUCKETS[:-1]


@dataclass(frozen=True)
class Chunk:
    """Tokens `start ... start + size - 1` of the prompt in a slot, padded to `padded`. `is_first`: of those that are
    computed."""

    slot: int
    start: int
    size: int
    padded: int
    is_first: bool = False

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + self.size


def prompt_chunks(length: int, buckets: Sequence[int], begin: int = 0) -> Iterator[tuple[int, int, int]]:
    """Cuts a prompt of `length` tokens, from position `begin` on: `(start, size, padded)` of each chunk."""
    for start in range(begin, length, buckets[-1]):
        size = min(buckets[-1], length - start)
        yield start, size, next(bucket for bucket in buckets if bucket >= size)
