"""Frozen parameters: as if their gradient were zero, and without a gradient, moments or a place in each checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.model.params import abstract_params
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt, TinyRun, objective_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.checkpoints.arrays import abstract_arrays, saved_shapes
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.weights import load_params, read_params
from lifecycle.training.freeze import frozen_part, merged, split
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import Objective
from lifecycle.weights.names import unstack

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

RUN = TinyRun(steps=6, checkpoint_every=3)


def job(out: Path, *freeze: str, settings: TinyRun = RUN) -> TrainJob:
    tiny = tiny_job(out, settings)
    optimizer = tiny.train.optimizer.model_copy(update={"weight_decay": 0.0})  # which would move zeroed parameters
    return replace(tiny, train=tiny.train.model_copy(update={"freeze": freeze, "optimizer": optimizer}))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frozen")
    run_job(job(out, "embed"), Silent())
    return out


def weights(out: Path) -> dict[str, Any]:
    return load_params(out / CHECKPOINTS, abstract_params(MODEL))


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_log(out / METRICS) if "loss" in record]


def zeroed(params: Any, batch: Any, context: Any) -> Any:
    """The objective's loss, without a gradient in the embedding."""
    held = params | {"embed": jax.lax.stop_gradient(params["embed"])}
    return objective_of("next_token").loss(held, batch, context)


@pytest.mark.long
def test_a_frozen_embedding_is_as_if_its_gradient_were_zero(frozen: Path, tmp_path: Path) -> None:
    run_job(replace(job(tmp_path), objective=Objective(zeroed)), Silent())
    chex.assert_trees_all_equal(weights(frozen), weights(tmp_path))
    assert losses(frozen) == losses(tmp_path)
    start = random_params(MODEL, RUN.seed)
    assert np.array_equal(weights(frozen)["embed"], start["embed"])
    assert not np.array_equal(weights(frozen)["head"], start["head"])


@pytest.mark.slow
def test_a_checkpoint_has_the_trained_part_and_the_frozen_one_is_written_once(frozen: Path) -> None:
    folder = frozen / CHECKPOINTS
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6", "frozen"]
    everything = set(abstract_arrays(abstract_params(MODEL)))
    assert set(saved_shapes(folder / "6" / "params")) == everything - {"embed"}
    assert not [name for name in saved_shapes(folder / "6" / "opt_state") if name.endswith("embed")]
    assert set(saved_shapes(folder / "frozen")) == {"embed"}
    read = read_params(folder, abstract_params(MODEL))
    for name, array in unstack(weights(frozen)).items():
        assert np.array_equal(read(name, None), array)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_frozen_parameters_that_it_saved(frozen: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(job(tmp_path, "embed"), StopAt(5))
    other = replace(job(tmp_path, "embed"), start=jax.random.key(7))  # what was saved is what counts
    run_job(other, Silent())
    chex.assert_trees_all_equal(weights(frozen), weights(tmp_path))
    assert losses(frozen) == losses(tmp_path)


@pytest.mark.slow
def test_a_run_that_froze_something_else_is_refused(frozen: Path) -> None:
    with pytest.raises(CheckpointError, match=r"params embed is absent, in this run .*frozen parameters differ"):
        run_job(job(frozen, settings=replace(RUN, steps=8)), Silent())


@pytest.mark.slow
def test_damaged_frozen_parameters_are_not_used(frozen: Path, tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINTS
    folder.mkdir()
    for path in (frozen / CHECKPOINTS).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "frozen").unlink()
    (folder / "frozen").mkdir()
    with pytest.raises(CheckpointError, match=r"frozen: no files\.json"):
        load_params(folder, abstract_params(MODEL))


def test_damaged_frozen_parameters_are_set_aside_where_a_run_starts_over(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    for name in ("frozen", "frozen.damaged"):  # neither has its list of files
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    for _ in range(2):  # the second replaces what the first wrote
        checkpoints.save_frozen({"embed": jax.numpy.ones(2)})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frozen", "frozen.damaged", "frozen.damaged-2"]
    assert (tmp_path / "frozen.damaged-2" / "name").read_text() == "frozen"


@pytest.mark.parametrize(
    "freeze",
    [pytest.param(("blocks",), marks=pytest.mark.long),
     *(pytest.param(names, marks=pytest.mark.matrix)
       for names in (("blocks.*.attention", "head"), ("embed", "head", "norm.scale")))],
)  # fmt: skip
def test_parts_train_with_muon_on_a_mesh(tmp_path: Path, freeze: tuple[str, ...]) -> None:
    settings = replace(RUN, steps=3, optimizer="muon", mesh={"fsdp": 2, "tensor": 2, "replica": 2})
    run_job(job(tmp_path, *freeze, settings=settings), Silent())
    start = unstack(jax.device_get(random_params(MODEL)))
    kept = set(abstract_arrays(frozen_part(MODEL, freeze)))
    for name, array in unstack(weights(tmp_path)).items():
        assert np.array_equal(array, start[name]) == (name in kept), name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("embed", {"embed"}),
        ("norm", {"norm.scale"}),
        ("blocks.*.attention.q", {"blocks.0.attention.q", "blocks.1.attention.q"}),
        (
            "blocks.[01].feed_forward.*",
            {f"blocks.{n}.feed_forward.{m}" for n in (0, 1) for m in ("down", "gate", "up")},
        ),
    ],
)
def test_patterns_are_canonical_names_or_their_beginnings(pattern: str, names: set[str]) -> None:
    assert set(abstract_arrays(frozen_part(MODEL, [pattern]))) == names


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["embde"], r"freeze: 'embde' is not a parameter of this model; did you mean 'embed'\?"),
        (["blocks.*.attention.r"], r"'blocks\.\*\.attention\.r' is not .*did you mean 'blocks\.\d\.attention\.\w'"),
        (["blocks.0.attention.q"], r"1 of 2 layers .* blocks\.0\.attention\.q to .*: blocks\.\*\.atten"),
        (["blocks", "embed", "head", "norm"], "freeze: blocks, embed, head, norm leaves no parameter to train"),
    ],
)  # fmt: skip
def test_patterns_that_freeze_nothing_or_too_much_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frozen_part(MODEL, patterns)


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_leaves=9
).filter(lambda tree: isinstance(tree, dict))


@given(trees, st.randoms())
def test_two_parts_make_the_tree_again(tree: Any, draw: Any) -> None:
    def part_of(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        inner = {key: part_of(item) for key, item in value.items() if draw.random() < 0.5}
        return {key: item for key, item in inner.items() if item != {}}

    frozen = part_of(tree)
    trained, kept = split(tree, frozen)
    assert kept == frozen and merged(trained, kept) == tree
    assert split(trained, frozen) == (trained, {})
