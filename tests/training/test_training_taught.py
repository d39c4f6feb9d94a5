"""What a teacher says before the first step: the ids and numbers that it has in a step, kept and gone on from."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_train
from lifecycle.model.embedding import head
from lifecycle.model.params import logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt, TinyRun, objective_of
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN, TEACHER, example
from lifecycle.text.taught_rows import Told
from lifecycle.training.batches import one_epoch
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.objectives.distillation import distillation
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.packing import ExampleRows
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS, TaughtRows, Teacher, given_table, taught_table

MESH = build_mesh(MeshConfig())
SIZE = 4  # rows of a batch


@pytest.fixture(scope="module")
def rows() -> ExampleRows:
    draw = np.random.default_rng(0)
    return ExampleRows([example(draw, [1, 2], int(size)) for size in draw.integers(1, 14, 40)], SEQ_LEN, seed=0)


def settings(**own: Any) -> DistillationConfig:
    train = TinyRun(objective="distillation").train().model_copy(update={"temperature": 1.5, **own})
    assert isinstance(train, DistillationConfig)
    return train


def teacher_on(mesh: Any, train: DistillationConfig, loads: list[str] | None = None) -> Teacher:
    def load() -> tuple[ModelConfig, Any]:
        if loads is not None:
            loads.append("loaded")
        return TEACHER, jax.device_put(random_params(TEACHER, 1), tree_shardings(mesh, logical_axes(TEACHER)))

    return Teacher(load, train)


def whole(rows: Any) -> dict[str, Any]:
    return next(one_epoch(rows, global_batch_size=rows.num_rows))


@pytest.fixture(scope="module")
def said(rows: ExampleRows) -> np.ndarray:
    """The teacher's log-probabilities, from all of its logits."""
    batch = whole(rows)
    params = random_params(TEACHER, 1)
    inputs = (jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids"))
    hidden, _ = jax.jit(partial(forward_train, TEACHER))(params, *inputs)
    logits = jnp.einsum("btd,vd->btv", hidden, head(TEACHER, params), precision="highest")
    return np.asarray(jax.nn.log_softmax(logits / 1.5))


@pytest.mark.parametrize(
    "axes", [MeshConfig(), pytest.param(MeshConfig(fsdp=2, context=2, tensor=2), marks=pytest.mark.slow)]
)
def test_a_row_has_the_likeliest_ids_of_its_learned_tokens(
    axes: MeshConfig, rows: ExampleRows, said: np.ndarray, tmp_path: Path
) -> None:
    """Of the first epoch and, by the same table, of the second, which has other rows."""
    mesh, num = build_mesh(axes), 5
    teacher = teacher_on(mesh, settings(loss_top_k=num))
    table = taught_table(teacher, rows, SIZE, mesh, tmp_path / "t.npz", Silent(), rows.num_rows)
    taught = TaughtRows(rows, table)
    of_example: dict[tuple[int, ...], np.ndarray] = {}
    for index in range(rows.num_rows):
        row = taught.row(index)
        learned = row["loss_mask"] > 0
        expected = said[index][learned]
        np.testing.assert_allclose(row[TEACHER_LOGPROBS][learned], -np.sort(-expected)[:, :num], atol=1e-5)
        found = np.take_along_axis(expected, row[TEACHER_IDS][learned], axis=-1)
        np.testing.assert_allclose(found, row[TEACHER_LOGPROBS][learned], atol=1e-5)
        assert (row[TEACHER_IDS][~learned] == -1).all() and not row[TEACHER_LOGPROBS][~learned].any()
        of_example |= each_example(row)
    for index in range(rows.num_rows, 2 * rows.num_rows):
        for ids, logprobs in each_example(taught.row(index)).items():
            np.testing.assert_array_equal(logprobs, of_example[ids])


def test_rows_that_have_a_teachers_ids_are_as_if_it_was_asked(rows: ExampleRows, tmp_path: Path) -> None:
    teacher = teacher_on(MESH, settings(loss_top_k=4))
    table = taught_table(teacher, rows, SIZE, MESH, tmp_path / "t.npz", Silent(), rows.num_rows)
    ids, logprobs = table[TEACHER_IDS], table[TEACHER_LOGPROBS]
    cut = np.array([0, 3, 4, len(ids)])
    each = [Told(ids[begin:end], logprobs[begin:end]) for begin, end in pairwise(cut)]
    each[1] = Told(each[1].ids[:, :2], each[1].logprobs[:, :2])  # an example whose tokens have fewer
    given = given_table(each, 6)
    expected = ids.copy()
    expected[3, 2:] = -1
    np.testing.assert_array_equal(given[TEACHER_IDS][:, :4], expected)
    assert (given[TEACHER_IDS][:, 4:] == -1).all() and not given[TEACHER_LOGPROBS][3, 2:].any()
    np.testing.assert_array_equal(given[TEACHER_LOGPROBS][4:, :4], logprobs[4:])


def each_example(row: dict[str, np.ndarray]) -> dict[tuple[int, ...], np.ndarray]:
    """What is said of each example of a row, by its tokens."""
    places = [np.flatnonzero(row["segment_ids"] == segment) for segment in range(1, row["segment_ids"].max() + 1)]
    return {tuple(row["targets"][where].tolist()): row[TEACHER_LOGPROBS][where] for where in places}


def test_a_stopped_pass_goes_on_and_a_finished_one_loads_no_teacher(
    rows: ExampleRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.training.tables.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("lifecycle.training.tables.SAVING_SHARE", 1e9)
    train = settings(loss_top_k=3, shared_ids=90)
    loads: list[str] = []
    teacher = teacher_on(MESH, train, loads)
    ask: Callable[..., Any] = partial(taught_table, teacher, rows, SIZE, MESH)
    expected = ask(tmp_path / "a.npz", Silent(), rows.num_rows)
    assert expected[TEACHER_IDS].max() < 90 and expected[TEACHER_IDS].min() >= 0
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "b.npz", StopAt(2 * SIZE), rows.num_rows)
    seen: list[int] = []

    class Seen(Silent):
        def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
            seen.append(done)

    found = ask(tmp_path / "b.npz", Seen(), rows.num_rows)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)
    assert seen[0] == 2 * SIZE and len(loads) == 3
    ask(tmp_path / "b.npz", Silent(), rows.num_rows)
    assert len(loads) == 3


@pytest.mark.long
@pytest.mark.parametrize("beta", [0.4, *(pytest.param(one, marks=pytest.mark.long) for one in (0.0, 1.0))])
def test_all_ids_are_the_live_teacher(beta: float, rows: ExampleRows, tmp_path: Path) -> None:
    params, held = random_params(MODEL), {"teacher": random_params(TEACHER, 1)}
    own = {"beta": beta, "temperature": 1.5, "loss_top_k": MODEL.vocab_size}
    teacher = teacher_on(MESH, settings(**own))
    table = taught_table(teacher, rows, SIZE, MESH, tmp_path / "t.npz", Silent(), rows.num_rows)
    batch: Any = {name: jnp.asarray(column) for name, column in whole(TaughtRows(rows, table)).items()}

    def learned(held: Any, **own: Any) -> tuple[Any, Any]:
        objective = objective_of("distillation", **own)

        def loss(params: Any) -> Any:
            sums = objective(params | held, batch)
            return sums.loss / sums.count

        return jax.jit(jax.value_and_grad(loss))(params)

    live, grads = learned(held, beta=beta, temperature=1.5)
    for add_tail in (False, True):
        loss, few = learned({}, **own, loss_add_tail=add_tail)
        assert loss == pytest.approx(float(live), rel=1e-5)
        for one, other in zip(jax.tree.leaves(few), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("add_tail", [False, True])
def test_memory_of_a_loss_over_few_ids(dtype: Any, add_tail: bool) -> None:
    """At a vocabulary of 151,936 and 16,384 positions with 64 ids each, forward and backward, beside arguments and
    results."""
    vocab, positions, num = 151_936, 16_384, 64
    config = settings(loss_top_k=num, loss_add_tail=add_tail)
    of_tokens = {"targets": jnp.int32, "loss_mask": jnp.float32}
    columns = {name: jax.ShapeDtypeStruct((1, positions), kind) for name, kind in of_tokens.items()}
    columns |= {TEACHER_IDS: jax.ShapeDtypeStruct((1, positions, num), jnp.int32)}
    columns |= {TEACHER_LOGPROBS: jax.ShapeDtypeStruct((1, positions, num), jnp.float32)}

    def loss(hidden: Any, table: Any, batch: Any) -> Any:
        return distillation(config, TokenLikelihoods(batch, hidden, table, None, 1), {}).loss

    args = jax.ShapeDtypeStruct((1, positions, 64), dtype), jax.ShapeDtypeStruct((vocab, 64), dtype), columns
    for program in (loss, jax.value_and_grad(loss, (0, 1))):
        memory: Any = jax.jit(program).lower(*args).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.5e9
