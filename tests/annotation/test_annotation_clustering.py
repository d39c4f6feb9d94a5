"""Clusters: the best ones there are of few vectors, the laws of k-means, and that nothing beside a vector counts."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.annotation import clustering
from lifecycle.annotation.clustering import UNIT, cluster, refined, seeds, whole
from lifecycle.annotation.vectors import KEY_BYTES, VectorFile
from lifecycle.core.config import ConfigError

SMALL = st.tuples(st.integers(2, 40), st.integers(2, 6), st.integers(0, 99))  # vectors, dimensions, seed


def drawn(number: int, dimensions: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(number, dimensions))
    return whole(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def unit_from_mean(vectors: np.ndarray) -> np.ndarray:
    """In plain floats."""
    moved = vectors / UNIT - (vectors / UNIT).mean(0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def resultant(directions: np.ndarray, numbers: np.ndarray) -> float:
    """The sum of the vectors' cosines with the means of their clusters: what spherical k-means maximises."""
    return sum(float(np.linalg.norm(directions[numbers == number].sum(0))) for number in np.unique(numbers))


def test_of_few_vectors_the_clusters_are_the_best_of_all() -> None:
    for seed in range(6):
        vectors = drawn(8, 3, seed)
        directions = unit_from_mean(vectors)
        best = max(resultant(directions, np.array(own)) for own in itertools.product(range(3), repeat=8))
        found = resultant(directions, cluster(vectors, 3, 0).nearest(vectors)[0])
        assert found > 0.97 * best
        assert seed > 3 or found == pytest.approx(best, rel=1e-4)


def test_groups_that_lie_apart_are_the_clusters() -> None:
    chance, groups = np.random.default_rng(0), np.repeat(np.arange(5), [40, 30, 20, 10, 5])
    axes = np.linalg.qr(chance.normal(size=(16, 16)))[0]
    vectors = 4 * axes[9] + axes[groups] + 0.05 * chance.normal(size=(len(groups), 16))  # in a narrow cone
    stored = whole(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    for seed in range(3):
        numbers, cosines = cluster(stored, 5, seed).nearest(stored)
        assert numbers.tolist() == groups.tolist(), "and the largest comes first"
        assert cosines.min() > 0.9


@given(SMALL, st.integers(1, 5))
def test_rounds_never_make_it_worse_and_each_vector_is_nearest_to_its_own_centre(
    sizes: tuple[int, int, int], num_clusters: int
) -> None:
    vectors = drawn(*sizes)
    num_clusters = min(num_clusters, len(vectors))
    centres, history = refined(vectors, seeds(vectors, num_clusters, np.random.default_rng(1)))
    assert all(after >= before - 1e-4 for before, after in itertools.pairwise(history))
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.full(num_clusters, UNIT), rel=1e-3)
    found = cluster(vectors, num_clusters, 2)
    numbers, cosines = found.nearest(vectors)
    products = unit_from_mean(vectors) @ (found.centres / UNIT).T
    assert cosines == pytest.approx(products.max(1), abs=0.02)
    assert products[np.arange(len(vectors)), numbers] == pytest.approx(products.max(1), abs=0.02)


def test_a_vector_s_cluster_depends_on_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(300, 48, 3)
    found = cluster(vectors, 7, 5)
    numbers, cosines = found.nearest(vectors)
    for at in (0, 17, 299):
        own = found.nearest(vectors[at : at + 1])
        assert (own[0][0], own[1][0]) == (numbers[at], cosines[at])
    monkeypatch.setattr(clustering, "BLOCK", 13)
    again = cluster(vectors, 7, 5)
    assert (again.centres == found.centres).all() and (again.nearest(vectors)[1] == cosines).all()


def test_an_empty_cluster_begins_again() -> None:
    vectors = whole(np.array([[1.0, 0], [0.99, 0.141], [0, 1], [-1, 0]]))
    far = np.array([[UNIT, 0], [0, -UNIT], [0, -UNIT]], float)
    centres, _ = refined(vectors, far)
    found = np.argmax(vectors @ centres.T, 1)
    assert len({*found.tolist()}) == 3 and found[0] == found[1]


def test_fewer_different_vectors_than_clusters_are_refused() -> None:
    vectors = np.repeat(drawn(3, 4, 0), 5, axis=0)
    assert {*cluster(vectors, 3, 0).nearest(vectors)[0].tolist()} == {0, 1, 2}
    with pytest.raises(ConfigError, match="4 clusters of 3 different vectors"):
        cluster(vectors, 4, 0)


@given(st.integers(0, 70))
def test_whole_vectors_count_after_a_kill(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path, vectors = tmp_path_factory.mktemp("vectors") / "v", drawn(4, 3, 1)
    keys = [bytes([number]) * KEY_BYTES for number in (9, 0, 200, 7)]
    with VectorFile(path, {"model": "m"}, 3) as file:
        assert file.lacks(keys).all()
        file.add(keys[:2], vectors[:2])
        file.add(keys[2:], vectors[2:])
        assert (file.read(keys[::-1]) == vectors[::-1]).all()
    whole_size = path.stat().st_size
    with path.open("r+b") as damaged:
        damaged.truncate(whole_size - cut)
    with VectorFile(path, {"model": "m"}, 3) as file:
        lost = -(-cut // (KEY_BYTES + 6))
        assert file.lacks(keys).tolist() == [number >= 4 - lost for number in range(4)]
        file.add(keys[4 - lost :], vectors[4 - lost :]) if lost else None
        assert (file.read(keys) == vectors).all() and path.stat().st_size == whole_size


def test_vectors_of_another_model_are_refused_and_so_is_a_second_writer(tmp_path: Path) -> None:
    with VectorFile(tmp_path / "v", {"model": "a"}, 3), pytest.raises(ConfigError, match="another process writes it"):
        VectorFile(tmp_path / "v", {"model": "a"}, 3)
    with pytest.raises(ConfigError, match=r"model 'a' -> 'b'.*delete it, or write elsewhere"):
        VectorFile(tmp_path / "v", {"model": "b"}, 3)
    (tmp_path / "v").write_bytes(b"\x93PAR\n")
    with pytest.raises(ConfigError, match="damaged at byte 0"):
        VectorFile(tmp_path / "v", {"model": "a"}, 3)
