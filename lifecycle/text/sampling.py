"""Samples of text to train a tokenizer on, chosen by a hash, so that the order of texts does not count.

Memory holds the sample, never the corpus.
"""

import hashlib
import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping

CHUNK = 1000  # characters of one training piece: long enough for pieces with newlines, short enough to sample evenly


def sample_chunks(texts: Iterable[str], sample_bytes: int, seed: int) -> list[str]:
    """A uniform sample of chunks of about `CHUNK` characters, `sample_bytes` in all: those of lowest rank, a hash of
    their content and the seed."""
    sample = _Sample(sample_bytes, seed)
    for text in texts:
        sample.add(text)
    return sample.chunks()


def balanced_chunks[G: Hashable](
    texts: Iterable[tuple[G, str]], sizes: Mapping[G, int], sample_bytes: int, balance: float, seed: int
) -> list[str]:
    """As `sample_chunks`, but each group of texts has its share by `quotas`. `sizes`: the bytes of each group."""
    samples = {group: _Sample(quota, seed) for group, quota in quotas(sizes, sample_bytes, balance).items()}
    for group, text in texts:
        samples[group].add(text)
    return [chunk for sample in samples.values() for chunk in sample.chunks()]


def quotas[G: Hashable](sizes: Mapping[G, int], total: int, balance: float) -> dict[G, int]:
    """Bytes of each group in a sample of `total` bytes: in proportion to `size ** balance`, 1 as in the corpus, 0 the
    same of each; none has more than there is, and others have what is left. Conneau et al. 2020, arXiv:1911.02116,
    section 3.1."""
    found: dict[G, int] = {}
    left, rest = total, {group: size for group, size in sizes.items() if size}
    while rest:
        weights = {group: size**balance for group, size in rest.items()}
        scale = left / sum(weights.values())
        full = {group: size for group, size in rest.items() if size <= weights[group] * scale}
        if not full:
            return found | {group: int(weight * scale) for group, weight in weights.items()}
        found |= full
        left -= sum(full.values())
        rest = {group: size for group, size in rest.items() if group not in full}
    return found


class _Sample:
    """The chunks of lowest rank, of so many bytes, but one at least."""

    def __init__(self, most_bytes: int, seed: int) -> None:
        self._most_bytes, self._seed = most_bytes, seed
        self._heap: list[tuple[int, str]] = []  # largest rank first
        self._size = 0

    def add(self, text: str) -> None:
        for chunk in _chunks(text):
            heapq.heappush(self._heap, (-_rank(chunk, self._seed), chunk))
            self._size += len(chunk.encode())
            while self._size > self._most_bytes and len(self._heap) > 1:
                self._size -= len(heapq.heappop(self._heap)[1].encode())

    def chunks(self) -> list[str]:
        return [chunk for _, chunk in sorted(self._heap, reverse=True)]


def _chunks(text: str) -> Iterator[str]:
    """Whole lines of about `CHUNK` characters, never with a tab: SentencePiece skips training text that has one."""
    for part in text.split("\t"):
        current = ""
        for line in part.splitlines(keepends=True):
            for start in range(0, len(line), CHUNK):
                if current and len(current) + len(line) > CHUNK:
                    yield current
                    current = ""
                current += line[start : start + CHUNK]
        if current:
            yield current


def _rank(chunk: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(chunk.encode(), digest_size=8, salt=seed.to_bytes(16, "little")).digest())
