"""References in the steps: the losses of a table, TRL's with one that moves, and stops that leave no trace."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from lifecycle.core.progress import Silent
from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, adapter_off, with_reference
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt, TinyRun, objective_of, rows_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.config import TrainConfig
from lifecycle.training.freeze import merged, split
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective, group_logprobs
from lifecycle.training.preference import DpoConfig, KtoConfig
from lifecycle.training.reference import OF_OTHERS, REFERENCE
from lifecycle.training.reference_copy import following
from lifecycle.training.state import TrainState, state_shardings
from lifecycle.training.step import make_train_step
from lifecycle.weights.published import load_config, load_weights
from tests.golden.family_weights import write_model
from tests.training.test_training_trl import GOLDEN, LOSS, NORM, SIZES, TRL, pair_batch

ROWS = 4
DPO = {"loss": {"sigmoid": 1.0, "aot": 0.5}, "length_alpha": 0.4}
MOVES: dict[str, Any] = {"reference": "copy", "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.25}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return build_mesh(MeshConfig())


def referred(how: str) -> tuple[ModelConfig, Params, ModelConfig, Params]:
    """A model with its parameters, and its reference apart."""
    added = {"reference": "moving"} if how == "copy" else {"adapter": AdapterConfig(rank=2)}
    model = MODEL.model_copy(update=added)
    params = random_params(model, 3)
    plain, own = (MODEL, params["reference"]) if how == "copy" else adapter_off(model, params)
    return model, params, plain, own


@pytest.mark.parametrize(
    ("name", "how", "own"),
    [pytest.param("dpo", "copy", DPO, marks=pytest.mark.slow), pytest.param("kto", "base", {}, marks=pytest.mark.long)],
)
def test_a_reference_in_the_step_gives_what_a_table_of_it_does(name: str, how: str, own: dict[str, Any]) -> None:
    model, params, plain, reference = referred(how)
    batch: Any = dict(next(one_epoch(rows_of(TinyRun(objective=name)), global_batch_size=ROWS)))
    batch |= {"row": np.arange(ROWS)}
    measured = partial(group_logprobs, plain, size=2 if name == "dpo" else 1)
    table = {REFERENCE: jax.jit(partial(measured, length_alpha=own.get("length_alpha")))(reference, batch)}
    if name == "kto":
        table[OF_OTHERS] = jax.jit(partial(measured, of_others=True))(reference, batch)
    is_trained = {part: part == "adapter" if how == "base" else part != "reference" for part in params}
    fixed = {part: array for part, array in params.items() if not is_trained[part]}
    trained, frozen = split(params, fixed)

    def found(settings: dict[str, Any], rows: Any) -> Any:
        objective = objective_of(name, model, **{"global_batch_size": ROWS, **own, **settings})

        def loss(trained: Params) -> Any:
            sums = objective(merged(trained, frozen), rows)
            return sums.loss / sums.count, sums.metric_means(sums.count)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)

    (value, metrics), grads = found({"reference": how}, {key: batch[key] for key in batch if key not in table})
    (expected, of_table), of_grads = found({}, batch | table)
    assert value == pytest.approx(expected, rel=1e-6) and abs(value) > 0.1
    assert metrics == pytest.approx(of_table, rel=1e-5, abs=1e-5)
    assert float(optax.global_norm(grads)) == pytest.approx(float(optax.global_norm(of_grads)), rel=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(TRL["moving_references"][0], id="soft", marks=pytest.mark.long),
        pytest.param(TRL["moving_references"][1], id="hard", marks=pytest.mark.long),
    ],
)
def test_a_reference_that_moves_gives_trls_losses(case: dict[str, Any], mesh: Mesh, tmp_path: Path) -> None:
    write_model(GOLDEN / "families/llama2", tmp_path)
    train = DpoConfig(**SIZES, reference="copy", **case["settings"])
    plain = load_config(tmp_path)
    model, descent = train.with_copy(plain), optax.sgd(case["learning_rate"])
    shardings = state_shardings(model, descent, mesh, train.frozen(model))
    params = jax.device_put(with_reference(model, load_weights(plain, tmp_path)), shardings.params)
    trained, frozen = split(params, shardings.frozen)
    state = TrainState(trained, frozen, descent.init(trained), jnp.int32(0))
    step = make_train_step(build_objective(model, train), descent, mesh, shardings, follow=following(train))
    host = {name: column for name, column in pair_batch(None).items() if name not in ("row", REFERENCE)}
    losses, norms = [], []
    for _ in case["losses"]:
        state, metrics = step(state, shard_batch(host, mesh))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    assert losses == pytest.approx(case["losses"], rel=LOSS) and norms == pytest.approx(case["grad_norms"], rel=NORM)


@pytest.mark.long
def test_a_stopped_run_goes_on_with_the_reference_that_it_had(tmp_path: Path) -> None:
    run = TinyRun(objective="dpo", steps=7, checkpoint_every=3, settings=MOVES)
    expected = run_job(tiny_job(tmp_path / "whole", run), Silent())
    with pytest.raises(KeyboardInterrupt):
        run_job(tiny_job(tmp_path / "stopped", run), StopAt(5))
    folder = tmp_path / "stopped" / CHECKPOINTS
    assert steps_in(folder) == [3]
    found = run_job(tiny_job(tmp_path / "stopped", run), Silent())
    assert found["params_hash"] == expected["params_hash"] and found["loss"] == expected["loss"]
    assert {"opt_state", "params", "reference"} <= {path.name for path in (folder / "6").iterdir()}
    assert load_params(folder, random_params(MODEL)).keys() == random_params(MODEL).keys()  # readers know nothing of it


WRONG: list[tuple[type[TrainConfig], dict[str, Any], str]] = [
    (DpoConfig, {"reference": "base"}, "reference=base .* reference=precomputed"),
    (KtoConfig, {"reference": "base", "adapter": {"from": "previous"}}, "fresh adapter"),
    (KtoConfig, {"reference": "copy", "adapter": {}}, "set reference=base"),
    (DpoConfig, {"reference": "copy", "weights": "int8"}, "weights=int8"),
    (DpoConfig, {"ref_model_sync_steps": 2}, "set reference=copy"),
    (DpoConfig, {"ref_model_mixup_alpha": 0.5}, "set ref_model_sync_steps"),
    (DpoConfig, {"reference": "copy", "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.5}, "less than or equal"),
]


@pytest.mark.parametrize(("kind", "given", "said"), WRONG)
def test_settings_that_do_not_go_together_are_refused(kind: type[TrainConfig], given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**SIZES, **given)


def test_a_copy_is_counted() -> None:
    plain, fixed = DpoConfig(**SIZES), DpoConfig(**SIZES, reference="copy")
    moving = DpoConfig(**SIZES, reference="copy", ref_model_sync_steps=1)
    sizes = [train.state_bytes(MODEL) for train in (plain, fixed, moving)]
    assert sizes[1] - sizes[0] == (sizes[2] - sizes[0]) / 2 == 2 * sizes[0] / plain.optimizer.bytes_per_parameter
    assert fixed.flops_per_token(MODEL) == pytest.approx(plain.flops_per_token(MODEL) * 4 / 3)
