"""Clusters of directions: spherical k-means (Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data
Using Clustering") from starts by k-means++ (Arthur and Vassilvitskii 2007).

The mean of all vectors is subtracted first: those of a language model lie in a narrow cone, whose axis says nothing of
a text (Mu and Viswanath 2018, "All-but-the-Top"). What must hold: the same vectors and seed give the same clusters, and
a vector's cluster depends on nothing beside it. So vectors and centres are whole numbers, whose products are exact in
float64, in whatever order a processor sums them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifecycle.annotation.vectors import Vectors
from lifecycle.core.config import ConfigError

UNIT = 1 << 14  # the length of a vector: a product of two, in up to 2^15 dimensions, is far below 2^53
STARTS = 4  # of which the best result counts
MOST_ROUNDS = 50
BLOCK = 4096  # vectors in float64 at a time

type Whole = NDArray[np.float64]  # whole numbers, so that products are made by BLAS and are exact


def whole(vectors: NDArray[np.floating]) -> Vectors:
    """Vectors `[N, D]` of length 1 in whole numbers, of length `UNIT`."""
    return np.rint(np.asarray(vectors, np.float64) * UNIT).astype(np.int16)


@dataclass(frozen=True, eq=False)
class Clusters:
    """`mean` `[D]` of the vectors, and the directions of the centres from it, `[K, D]`, the largest cluster first."""

    mean: Whole
    centres: Whole

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The number of the nearest centre to each of `[N, D]` and their cosine; of equally near ones the first."""
        numbers, products = _nearest(_directions(vectors, self.mean), self.centres)
        return numbers, products / UNIT**2


def cluster(vectors: Vectors, num_clusters: int, seed: int) -> Clusters:
    """Clusters of vectors `[N, D]`. Raises `ConfigError` for fewer different directions than clusters."""
    mean = np.rint(vectors.mean(0, dtype=np.float64))
    directions = _directions(vectors, mean)
    chance = np.random.default_rng(seed)
    found = [refined(directions, seeds(directions, num_clusters, chance))[0] for _ in range(STARTS)]
    best = max(found, key=lambda centres: float(_nearest(directions, centres)[1].sum()))
    sizes = np.bincount(_nearest(directions, best)[0], minlength=num_clusters)
    return Clusters(mean, best[np.argsort(-sizes, kind="stable")])


def seeds(directions: Vectors, num_clusters: int, chance: np.random.Generator) -> Whole:
    """The first centres, `[K, D]`: each a vector that is drawn in proportion to its squared distance from the nearest
    of those before it."""
    own = _squares(directions)
    chosen = [int(chance.integers(len(directions)))]
    nearest = np.full(len(directions), -np.inf)
    while len(chosen) < num_clusters:
        nearest = np.maximum(nearest, _nearest(directions, directions[chosen[-1:]].astype(np.float64))[1])
        weights = np.cumsum(np.maximum(own - nearest, 0).astype(np.int64))
        if not weights[-1]:
            raise ConfigError(f"{num_clusters} clusters of {len(chosen)} different vectors: ask for fewer")
        chosen.append(int(np.searchsorted(weights, chance.integers(weights[-1]), side="right")))
    return directions[chosen].astype(np.float64)


def refined(directions: Vectors, centres: Whole) -> tuple[Whole, list[float]]:
    """Lloyd's rounds from these centres, until no vector changes its own: (the centres, the mean cosine of the vectors
    with their centres before each round). A cluster that is empty begins again with the vector that is farthest from
    its centre."""
    history: list[float] = []
    before = np.full(len(directions), -1)
    for _ in range(MOST_ROUNDS):
        numbers, products = _nearest(directions, centres)
        history.append(float(products.mean()) / UNIT**2)
        if (numbers == before).all():
            break
        before, centres = numbers, _centres(directions, numbers, products, centres)
    return centres, history


def _centres(directions: Vectors, numbers: NDArray[np.int64], products: Whole, before: Whole) -> Whole:
    sums = np.zeros_like(before)
    for at in range(0, len(directions), BLOCK):
        is_of = np.arange(len(before))[:, None] == numbers[at : at + BLOCK]
        sums += is_of.astype(np.float64) @ directions[at : at + BLOCK].astype(np.float64)
    empty = np.flatnonzero(np.bincount(numbers, minlength=len(before)) == 0)
    farthest = np.argsort(products, kind="stable")[: len(empty)]
    sums[empty[: len(farthest)]] = directions[farthest]
    return _scaled(sums)


def _directions(vectors: Vectors, mean: Whole) -> Vectors:
    """From the mean."""
    found = np.empty_like(vectors)
    for at in range(0, len(vectors), BLOCK):
        found[at : at + BLOCK] = _scaled(vectors[at : at + BLOCK].astype(np.float64) - mean)
    return found


def _scaled(vectors: Whole) -> Whole:
    """Vectors of length `UNIT` in the same directions; zeros stay zeros."""
    lengths = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    return np.rint(vectors * (UNIT / np.where(lengths > 0, lengths, 1)))


def _squares(vectors: Vectors) -> Whole:
    """The squared length of each."""
    blocks = (vectors[at : at + BLOCK].astype(np.float64) for at in range(0, len(vectors), BLOCK))
    return np.concatenate([(block * block).sum(-1) for block in blocks])


def _nearest(directions: Vectors, centres: Whole) -> tuple[NDArray[np.int64], Whole]:
    """The number of the centre with the largest product with each direction, and that product."""
    numbers, products = [], []
    for at in range(0, len(directions), BLOCK):
        of_block = directions[at : at + BLOCK].astype(np.float64) @ centres.T
        numbers.append(of_block.argmax(1))
        products.append(of_block.max(1))
    return np.concatenate(numbers), np.concatenate(products)
