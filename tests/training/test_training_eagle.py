"""Training a drafter: what the objective sums, which parameters move, and that it learns to draft."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.model.config import MlaConfig, ModelConfig
from lifecycle.model.counts import drafter_flops_per_token, forward_flops_per_token
from lifecycle.model.decoder import forward_taking
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.mtp import ahead
from lifecycle.model.params import Params, init_drafter
from lifecycle.model.prediction import forward_drafts
from lifecycle.model.stacks import DRAFTER
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.checks import check_sizes
from lifecycle.stages.drafters import frequent_ids, with_drafter
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import Documents
from lifecycle.training.batches import RowBatches
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.drafting import EagleConfig
from lifecycle.training.freeze import frozen_part
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.training.trainer import Trainer

TARGET = ModelConfig(
    vocab_size=96, d_model=16, d_ff=24, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8, max_seq_len=32,
    compute_dtype="float32", logits_soft_cap=5.0,
)  # fmt: skip
LENGTH, STEPS, DRAFTED = 16, 3, 40


def settings(**changes: Any) -> EagleConfig:
    fields = {"steps": 40, "seq_len": LENGTH, "global_batch_size": 8, "draft_steps": STEPS, "draft_vocab": DRAFTED}
    return EagleConfig.model_validate(fields | changes)


MODEL = settings().trained(TARGET)
pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


@pytest.fixture(scope="module")
def rows() -> DocumentRows:
    return DocumentRows(Documents(60, 0), LENGTH, 0)


@pytest.fixture(scope="module")
def params(rows: DocumentRows) -> Params:
    return with_drafter(MODEL, random_params(TARGET), rows, 0, build_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def batch(rows: DocumentRows) -> dict[str, Any]:
    return RowBatches(rows, 8, range(8)).batch(0)


def summed(params: Params, batch: dict[str, Any], **changes: Any) -> tuple[Sums, Params]:
    """The objective's sums and the gradients of its loss, by one program."""
    objective = build_objective(MODEL, settings(**changes))

    def loss(params: Params) -> tuple[jax.Array, Sums]:
        sums = objective(params, batch)
        return sums.loss, sums

    (_, sums), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return sums, grads


@pytest.fixture(scope="module")
def of_step(params: Params, batch: dict[str, Any]) -> tuple[Sums, Params]:
    return summed(params, batch)


def capped(hidden: Any, table: Any) -> np.ndarray:
    cap = TARGET.logits_soft_cap
    assert cap is not None
    return cap * np.tanh(np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T / cap)


@pytest.mark.slow
def test_the_sums_are_the_formulas(params: Params, batch: dict[str, Any], of_step: tuple[Sums, Params]) -> None:
    @jax.jit
    def drafted(params: Params, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        hidden, taken = forward_taking(MODEL, params, *inputs, MODEL.drafter_layers)
        rows = [ahead(batch, depth) for depth in range(1, STEPS + 1)]
        return hidden, rows, forward_drafts(MODEL, params, taken, rows, batch["segment_ids"])

    hidden, rows, states = jax.device_get(drafted(params, batch))
    table, ids = (np.asarray(params[DRAFTER][VOCABULARY][name]) for name in ("head", "ids"))
    every, own = capped(hidden, params["head"]).argmax(-1), capped(hidden, table)
    loss, accepted, is_kept = 0.0, 0.0, np.ones(every.shape, bool)
    shares = {}
    for depth, (row, state) in enumerate(zip(rows, states, strict=True), 1):
        later = np.minimum(np.arange(LENGTH) + depth, LENGTH - 1)
        wanted, mask, drafts = every[:, later], np.asarray(row["loss_mask"]), capped(state, table)
        p = np.exp(own[:, later]) / np.exp(own[:, later]).sum(-1, keepdims=True)
        log_q = drafts - np.log(np.exp(drafts).sum(-1, keepdims=True))
        loss -= 0.8 ** (depth - 1) * (mask * np.isin(wanted, ids) * (p * log_q).sum(-1)).sum()
        is_right = ids[drafts.argmax(-1)] == wanted
        is_kept &= is_right
        accepted += (mask * is_kept).sum()
        shares[f"acceptance_{depth}"] = (mask * is_right).sum() / mask.sum()
    sums, _ = of_step
    count = np.asarray(rows[0]["loss_mask"]).sum()
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
    assert sums.count == count
    means = sums.metric_means(sums.count)
    assert {name: float(mean) for name, mean in means.items()} == pytest.approx(
        shares | {"accepted": accepted / count}, rel=1e-6
    )


@pytest.mark.slow
def test_only_the_drafter_has_gradients(params: Params, of_step: tuple[Sums, Params]) -> None:
    grads = of_step[1]
    vocabulary = grads[DRAFTER][VOCABULARY]
    drafter = {name: part for name, part in grads[DRAFTER].items() if name != VOCABULARY}
    others = {name: part for name, part in grads.items() if name != DRAFTER}
    assert not any(np.any(grad) for grad in jax.tree.leaves((others, vocabulary)))
    assert all(np.any(grad) for grad in jax.tree.leaves(drafter))
    trained = {**params, DRAFTER: {name: part for name, part in params[DRAFTER].items() if name != VOCABULARY}}
    frozen = frozen_part(MODEL, settings().frozen(MODEL))
    assert frozen.keys() == trained.keys() and frozen[DRAFTER].keys() == {VOCABULARY}


@pytest.mark.slow
def test_with_remat_it_is_the_same(params: Params, batch: dict[str, Any], of_step: tuple[Sums, Params]) -> None:
    chex.assert_trees_all_close(summed(params, batch, remat={})[1], of_step[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_learns_to_draft_what_its_target_says(rows: DocumentRows) -> None:
    """The target says the token three further, whatever came before; a drafter has to learn that for its drafts."""
    table = np.random.default_rng(1).normal(size=(TARGET.vocab_size, TARGET.d_model)).astype(np.float32)
    target = random_params(TARGET) | {"embed": jnp.asarray(table), "head": jnp.asarray(3 * np.roll(table, 3, 0))}
    train = settings(draft_vocab=None)
    model = train.trained(TARGET.model_copy(update={"logits_soft_cap": None}))
    start = with_drafter(model, target, rows, 0, build_mesh(MeshConfig()))
    optimizer = OptimizerConfig(learning_rate=0.02)
    trainer = Trainer(model, build_objective(model, train), 60, optimizer, params=start, freeze=train.frozen(model))
    before = jax.tree.map(np.asarray, target)
    batches = RowBatches(rows, 8, range(8))
    logged = [{name: float(x) for name, x in trainer.step(batches.batch(step)).items()} for step in range(60)]
    batches.close()
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert logged[0]["acceptance_1"] < 0.2 and logged[-1]["acceptance_1"] > 0.6
    assert logged[-1]["accepted"] > 1.2
    chex.assert_trees_all_equal({name: trainer.params[name] for name in before}, before)


def test_the_vocabulary_is_the_rows_most_frequent_targets(rows: DocumentRows, params: Params) -> None:
    counts = np.zeros(TARGET.vocab_size, int)
    for number in range(rows.num_rows):
        row = rows.row(number)
        counts += np.bincount(row["targets"][row["loss_mask"] > 0], minlength=TARGET.vocab_size)
    ids = frequent_ids(rows, TARGET.vocab_size, DRAFTED)
    assert np.all(np.diff(ids) > 0) and counts[ids].min() >= np.delete(counts, ids).max()
    held = params[DRAFTER][VOCABULARY]
    assert np.array_equal(held["ids"], ids) and np.array_equal(held["head"], params["head"][ids])


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_drafter_begins_as_its_targets_end(rows: DocumentRows, batch: dict[str, Any], offset: float) -> None:
    """Where neither attends, its first states are the target's hidden states: it reads the last layer's input."""
    target = TARGET.model_copy(update={"norm_offset": offset})
    model, inputs = settings().trained(target), (batch["tokens"], batch["positions"], batch["segment_ids"])
    assert model.drafter_layers[-1] == target.num_layers - 1
    params = with_drafter(model, random_params(target), rows, 0, build_mesh(MeshConfig()))
    idle = jax.tree_util.tree_map_with_path(
        lambda path, array: array * 0 if path[-1].key == "o" and path[0].key == DRAFTER else array, params
    )
    ((stack, layers),) = idle["blocks"].items()
    attention = layers["attention"] | {"o": layers["attention"]["o"].at[-1].set(0)}
    idle["blocks"] = {stack: layers | {"attention": attention}}
    hidden, taken = jax.jit(forward_taking, static_argnums=(0, 5))(model, idle, *inputs, model.drafter_layers)
    row = [ahead(batch, 1)]
    (state,) = jax.jit(forward_drafts, static_argnums=0)(model, idle, taken, row, batch["segment_ids"])
    np.testing.assert_allclose(state, hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("train", "model"), [({"d_ff": 20}, {}), ({}, {"activation": "gelu"})])
def test_what_does_not_fit_a_drafter_begins_fresh(
    rows: DocumentRows, train: dict[str, Any], model: dict[str, Any]
) -> None:
    target = TARGET.model_copy(update=model)
    config = settings(**train).trained(target)
    held = random_params(target)
    made = with_drafter(config, held, rows, 0, build_mesh(MeshConfig()))[DRAFTER]
    fresh = init_drafter(config, jax.random.key(0))
    chex.assert_trees_all_equal(made["feed_forward"], fresh["feed_forward"])
    assert np.array_equal(made["norm"]["scale"], held["norm"]["scale"])


def test_a_drafter_goes_on_as_it_is(rows: DocumentRows, params: Params) -> None:
    assert with_drafter(MODEL, params, rows, 5, build_mesh(MeshConfig())) is params


def test_its_work_is_the_targets_forward_pass_and_its_own_steps() -> None:
    flops = forward_flops_per_token(TARGET, LENGTH) + 3 * STEPS * drafter_flops_per_token(MODEL)
    assert settings().flops_per_token(MODEL) == flops


MLA = MlaConfig(kv_lora_rank=8, nope_head_dim=4, rope_head_dim=4, v_head_dim=8)


@pytest.mark.parametrize(
    ("model", "mesh", "changes", "message"),
    [
        ({"num_layers": 2}, {}, {}, "reads three layers"),
        ({"mla": MLA, "num_kv_heads": 2}, {}, {}, "prediction modules"),
        ({}, {"context": 2}, {}, r"without mesh\.context"),
        ({}, {"stage": 3}, {"global_batch_size": 9}, r"without mesh\.stage"),
        ({}, {}, {"draft_vocab": 97}, r"draft_vocab=97 is above model\.vocab_size=96"),
        ({}, {}, {"draft_steps": 16}, "too short"),
    ],
)
def test_what_cannot_be_trained_is_told_before(
    model: dict[str, Any], mesh: dict[str, int], changes: dict[str, Any], message: str
) -> None:
    train = settings(**changes)
    check = partial(check_sizes, "train.drafts", train, train.trained(TARGET.model_copy(update=model)))
    with pytest.raises((ValueError, ConfigError), match=message):
        check(MeshConfig(**mesh))
