"""Passes without learning: every row counts once, padding not at all, and references land beside their pairs."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of, rows_of
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN, Example, example
from lifecycle.training.batches import one_epoch
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.heldout import heldout_means
from lifecycle.training.objectives.objective import group_logprobs
from lifecycle.training.reference import REFERENCE, ReferenceRows, reference_logprobs

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

MESH = build_mesh(MeshConfig())


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


@pytest.mark.parametrize("objective", ["next_token", pytest.param("dpo", marks=pytest.mark.long)])
def test_means_do_not_depend_on_the_batch_size(params: Any, objective: str) -> None:
    rows = rows_of(TinyRun(objective=objective))
    assert rows.num_rows % 7  # the last batch is filled up
    found = [heldout_means(MODEL, objective_of(objective), rows, size, MESH)(params) for size in (rows.num_rows, 7)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    (whole,) = (shard_batch(host, MESH) for host in one_epoch(rows, global_batch_size=rows.num_rows))
    sums = jax.jit(objective_of(objective))(params, whole)
    expected = {f"heldout_{name}": mean for name, mean in sums.metric_means(sums.count).items()}
    expected |= {"heldout_loss": sums.loss / sums.count, "heldout_count": sums.count}
    assert found[0] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def pairs() -> list[tuple[Example, Example]]:
    draw = np.random.default_rng(0)
    return [(example(draw, [1, 2, 3], 1 + i % 6), example(draw, [1, 2, 3], 1 + i % 4)) for i in range(23)]


def alone(params: Any, answer: Example) -> float:
    """The answer's log-probability from a row of its own."""
    row = GroupRows([Group((answer, Example([1, 2], [False, True])))], SEQ_LEN, seed=0)
    batch = {name: jnp.asarray(array)[None] for name, array in row.row(0).items()}
    return float(PAIR_LOGPROBS(params, batch)[0, 0, 0])


PAIR_LOGPROBS = jax.jit(partial(group_logprobs, MODEL, size=2))


class Stops(Silent):
    """Keeps what is reported; an exception after some reports ends the pass, as a kill would."""

    def __init__(self, after: int | None = None) -> None:
        self.seen: list[tuple[int, int | None]] = []
        self._after = after

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        self.seen.append((done, total))
        if len(self.seen) == self._after:
            raise KeyboardInterrupt


def test_a_stopped_pass_goes_on_where_it_was_saved(
    params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.training.tables.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("lifecycle.training.tables.SAVING_SHARE", 1e9)
    rows = GroupRows([Group(pair) for pair in pairs()], SEQ_LEN, seed=0)
    ends = [(min(end, rows.num_rows), rows.num_rows) for end in range(2, rows.num_rows + 2, 2)]

    def table(path: Path, progress: Stops) -> Any:
        return reference_logprobs(MODEL, params, rows, 2, MESH, path, progress)[REFERENCE]

    undisturbed = Stops()
    expected = table(tmp_path / "a.npz", undisturbed)
    assert undisturbed.seen == ends and len(ends) > 3
    stopped, rest, again = Stops(after=3), Stops(), Stops()
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path / "b.npz", stopped)
    np.testing.assert_array_equal(table(tmp_path / "b.npz", rest), expected)
    np.testing.assert_array_equal(table(tmp_path / "b.npz", again), expected)
    assert (stopped.seen, rest.seen, again.seen) == (ends[:3], ends[2:], [])  # the third batch was not saved yet


def test_only_rows_that_are_seen_have_a_reference_until_more_are(params: Any, tmp_path: Path) -> None:
    """What is not computed is no number, so that a step that saw it would fail."""
    rows = GroupRows([Group(pair) for pair in pairs()], SEQ_LEN, seed=0)

    def table(path: Path, progress: Stops, num_rows: int | None) -> Any:
        return reference_logprobs(MODEL, params, rows, 2, MESH, path, progress, num_rows=num_rows)

    few, again, rest = Stops(), Stops(), Stops()
    first = table(tmp_path / "a.npz", few, 3)
    whole = table(tmp_path / "b.npz", Stops(), None)
    referenced = ReferenceRows(rows, first)
    for index in range(rows.num_rows):
        row = referenced.row(index)
        expected = ReferenceRows(rows, whole).row(index)["ref_logprobs"]
        is_seen = index < 4  # batches are of two rows
        unseen = np.where(row["group_mask"][:, None] > 0, np.nan, 0) * np.ones((1, 2))
        np.testing.assert_array_equal(row["ref_logprobs"], expected if is_seen else unseen)
    table(tmp_path / "a.npz", again, 4)
    np.testing.assert_array_equal(table(tmp_path / "a.npz", rest, None)[REFERENCE], whole[REFERENCE])
    assert few.seen == [(2, 3), (3, 3)] and again.seen == [] and rest.seen[0] == (6, rows.num_rows)


def test_references_lie_beside_their_pairs(params: Any, tmp_path: Path) -> None:
    listed = pairs()
    rows = GroupRows([Group(pair) for pair in listed], SEQ_LEN, seed=0)
    found = reference_logprobs(MODEL, params, rows, 4, MESH, tmp_path / "table.npz")
    table = found[REFERENCE]
    for index, pair in enumerate(listed):
        np.testing.assert_allclose(table[index], [alone(params, answer) for answer in pair], atol=1e-4)
    referenced = ReferenceRows(rows, found)
    assert (referenced.num_rows, referenced.fingerprint) == (rows.num_rows, rows.fingerprint)
    seen = set()
    for index in range(3 * rows.num_rows):  # later epochs put the pairs elsewhere
        row = referenced.row(index)
        for pair, is_pair, reference in zip(row["group_ids"], row["group_mask"], row["ref_logprobs"], strict=True):
            np.testing.assert_array_equal(reference, table[pair] if is_pair else [0, 0])
            seen |= {int(pair)} if is_pair else set()
    assert seen == set(range(23))
