"""Noise on embeddings: of the paper's size, the same however rows are packed, and in training steps alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import objective_of
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN, example
from lifecycle.training.batches import one_epoch
from lifecycle.training.heldout import heldout_means
from lifecycle.training.objectives.neftune import STEP, noise_of
from lifecycle.training.packing import ExampleRows

ALPHA, D = 8.0, 256
DRAW = np.random.default_rng(0)
EXAMPLES = [example(DRAW, [1, 2, 3], size) for size in (4, 9, 5, 12, 7)]


def batch_of(examples: list[Any], step: int) -> Any:
    rows = ExampleRows(examples, SEQ_LEN, seed=0)
    batch = next(one_epoch(rows, global_batch_size=rows.num_rows))
    return {**batch, STEP: np.full(rows.num_rows, step, np.int32)}


def noise(batch: Any) -> np.ndarray:
    zeros = jnp.zeros((*batch["tokens"].shape, D))
    return np.asarray(jax.jit(lambda batch: noise_of(ALPHA, batch)(zeros))(batch))


def by_segment(batch: Any) -> dict[bytes, np.ndarray]:
    """Each segment's noise by its ids."""
    found, tokens, segments = noise(batch), batch["tokens"], batch["segment_ids"]
    assert not found[segments == 0].any()
    places = [segments[row] == part for row in range(len(segments)) for part in range(1, segments[row].max() + 1)]
    rows = [row for row in range(len(segments)) for _ in range(segments[row].max())]
    return {tokens[row][here].tobytes(): found[row][here] for row, here in zip(rows, places, strict=True)}


def test_it_is_of_the_papers_size_and_the_same_packed_and_alone() -> None:
    packed = by_segment(batch_of(EXAMPLES, 3))
    alone = [by_segment(batch_of([one], 3)) for one in EXAMPLES]
    assert len(packed) == len(EXAMPLES)
    for own in alone:
        ((ids, values),) = own.items()
        np.testing.assert_array_equal(packed[ids], values)
        most = ALPHA / (len(values) * D) ** 0.5
        assert 0.98 * most < np.abs(values).max() <= most
        assert values.std() == pytest.approx(most / 3**0.5, rel=0.1) and abs(values.mean()) < 0.1 * most
        assert len(np.unique(values)) > 0.99 * values.size  # another number for each token and dimension


def test_it_differs_from_step_to_step_and_from_segment_to_segment() -> None:
    early, late = by_segment(batch_of(EXAMPLES, 3)), by_segment(batch_of(EXAMPLES, 4))
    assert all(np.abs(early[ids] - late[ids]).max() > 0.1 * np.abs(early[ids]).max() for ids in early)
    firsts = np.stack([values[0] for values in early.values()])  # of the same id at the same position
    assert len(np.unique(firsts)) > 0.99 * firsts.size


@pytest.mark.long
def test_only_steps_have_it() -> None:
    mesh = build_mesh(MeshConfig())
    rows, params = ExampleRows(EXAMPLES, SEQ_LEN, seed=0), random_params(MODEL)
    plain, noisy = objective_of("sft"), objective_of("sft", neftune_noise_alpha=ALPHA)
    found = [heldout_means(MODEL, objective, rows, 2, mesh)(params) for objective in (plain, noisy)]
    assert found[0] == found[1]
    batch = shard_batch(batch_of(EXAMPLES, 3), mesh)
    assert noisy.needs_step and not plain.needs_step
    assert float(noisy(params, batch).loss) != pytest.approx(float(plain(params, batch).loss), rel=1e-4)
