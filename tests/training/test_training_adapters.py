"""Adapters in training: PEFT's loss and gradients, none for frozen weights, runs that are stopped, what is refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.kernels.adapted import LowRankWeight
from lifecycle.model.config import MlaConfig, ModelConfig
from lifecycle.model.counts import num_adapter_params
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.gathering import gathered
from lifecycle.model.lora import lengths, merged
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, abstract_params, adapter_off, with_fresh_adapter, without_adapter
from lifecycle.model.stacks import ADAPTER
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import MODELS, random_params
from lifecycle.testing.jobs import StopAt, TinyRun, tiny_job
from lifecycle.training.config import TrainConfig
from lifecycle.training.job import TrainJob
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.loop import run_job
from lifecycle.training.lowering import trace_train_step
from lifecycle.training.objectives.objective import build_objective
from lifecycle.weights.adapters import AdapterError, published_tensors
from lifecycle.weights.published import load_config, load_weights
from lifecycle.weights.trained_adapters import matrices_of, read_trained, tree_of
from tests.golden.family_weights import write_model

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"steps": 4, "seq_len": 32, "global_batch_size": 4}
ALL = {"rank": 3, "alpha": 2, "scaling": "rslora"}
GOLDENS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3_all": ("llama3", ALL),
    "llama3_dora": ("llama3", ALL | {"kind": "dora"}),
    "qwen3_qkvo": ("qwen3", {"rank": 4, "alpha": 3, "targets": ["q", "k", "v", "o"]}),
}


def settings(adapter: dict[str, Any], **changes: Any) -> TrainConfig:
    tree = SIZES | {"objective": "next_token", "adapter": adapter} | changes
    return validate(TrainConfig, tree)


@partial(jax.jit, static_argnums=0)
def all_logits(config: ModelConfig, params: Params, tokens: Any) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return logits(config, params, forward(config, params, tokens, positions))


def base_of(name: str, folder: Path) -> tuple[ModelConfig, Params, TrainConfig]:
    """The golden adapter's model with it, the base's weights, and the stage's settings."""
    family, adapter = GOLDENS[name]
    write_model(GOLDEN / "families" / family, folder)
    base = load_config(folder).model_copy(update={"compute_dtype": "float32"})
    train = settings(adapter)
    return train.trained(base), load_weights(base, folder), train


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llama3_dora", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("llama3_all", "qwen3_qkvo")),
    ],
)
def test_loss_and_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    model, plain, train = base_of(name, tmp_path)
    expected, wanted = (np.load(GOLDEN / "adapters" / name / f"{file}.npz") for file in ("expected", "grads"))
    tokens = expected["tokens"]
    params = with_fresh_adapter(model, plain, jax.random.key(0))
    fresh, before = all_logits(model, params, tokens), all_logits(model.target, plain, tokens)
    np.testing.assert_allclose(fresh, before, atol=0 if train.adapter and train.adapter.kind == "lora" else 1e-5)
    params |= {ADAPTER: tree_of(model, read_trained(model, GOLDEN / "adapters" / name))}
    for found in (all_logits(model, params, tokens), all_logits(model.target, without_adapter(model, params), tokens)):
        np.testing.assert_allclose(found, expected["logits"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(all_logits(*adapter_off(model, params), tokens), before)
    rows, length = tokens.shape
    batch: dict[str, Any] = {
        "tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length), tokens.shape),
        "loss_mask": np.broadcast_to(np.arange(length) < length - 1, tokens.shape).astype(np.float32),
    }  # fmt: skip
    objective = build_objective(model, train)

    @jax.jit
    def loss(adapter: Params, params: Params) -> jax.Array:
        sums = objective({**params, ADAPTER: adapter}, batch)
        return sums.loss / sums.count

    value, grads = jax.value_and_grad(loss)(params[ADAPTER], params)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-5)
    found = published_tensors(model, matrices_of(grads))
    assert found.keys() == set(wanted.files) and rows == 2
    for key, grad in found.items():
        np.testing.assert_allclose(grad, wanted[key], atol=1e-4 * np.abs(wanted[key]).max(), rtol=0, err_msg=key)


@pytest.mark.slow
def test_frozen_weights_have_no_gradient() -> None:
    """A step without the products that make the weights' gradients: two thirds of the FLOPs, and the narrow ones'."""
    model = ModelConfig(
        vocab_size=64, d_model=128, d_ff=256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32, max_seq_len=32,
        compute_dtype="float32",
    )  # fmt: skip
    mesh, found, counted = build_mesh(MeshConfig()), [], []
    for train in (settings({"rank": 2}), validate(NextTokenConfig, SIZES | {"objective": "next_token"})):
        adapted = train.trained(model)
        cost = trace_train_step(adapted, train, mesh).lower().compile().cost_analysis()
        assert cost is not None
        found.append(cost["flops"])
        counted.append(train.flops_per_token(adapted))
    assert found[0] / found[1] == pytest.approx(counted[0] / counted[1], rel=0.1)
    assert counted[0] / counted[1] < 0.75


def adapted_job(out: Path) -> TrainJob:
    """A tiny run with an adapter beside its weights."""
    job = tiny_job(out, TinyRun(steps=6, checkpoint_every=2))
    train = job.train.model_copy(update={"adapter": settings({"rank": 2, "kind": "dora"}).adapter})
    model = train.trained(job.model)
    assert isinstance(job.start, dict)
    start = with_fresh_adapter(model, job.start, jax.random.key(0))
    return replace(job, model=model, train=train, objective=build_objective(model, train), start=start)


@pytest.mark.long
def test_a_stopped_run_ends_with_the_same_bits_and_saves_frozen_weights_once(tmp_path: Path) -> None:
    whole = run_job(adapted_job(tmp_path / "whole"), StopAt(0))
    with pytest.raises(KeyboardInterrupt):
        run_job(adapted_job(tmp_path / "stopped"), StopAt(3))
    again = run_job(adapted_job(tmp_path / "stopped"), StopAt(0))
    assert again["params_hash"] == whole["params_hash"] and again["loss"] == whole["loss"]
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in (tmp_path / "whole" / "checkpoints").iterdir()
        if folder.is_dir()
    }
    assert sizes["frozen"] > 40_000 and {"4", "6"} < sizes.keys()


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"dropout": 0.1}, {}, "adapter.dropout"),
    ({"targets": ["q", "q"]}, {}, "'q' is listed twice"),
    ({"targets": ["kv_up"]}, {}, "adapter.targets"),
    ({"rank": 0}, {}, "adapter.rank"),
    ({"alpha": 1e-50}, {}, "in float32"),
    ({"from": "freshly"}, {}, "expected fresh, previous or a folder: ./freshly"),
    ({}, {"weights": "int8"}, "weights=int8 trains the values"),
    ({}, {"mtp_weight": 0.1}, "with an adapter they stay"),
    ({}, {"objective": "eagle"}, "a drafter is trained by itself"),
    ({}, {"optimizer": {"base_width": 64}}, "no rule is known here for an adapter's matrices"),
]  # fmt: skip


@pytest.mark.parametrize(("adapter", "changes", "message"), REFUSED, ids=[message[:24] for *_, message in REFUSED])
def test_settings_that_do_not_fit_are_refused(adapter: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    settings({})
    with pytest.raises(ConfigError) as refused:
        settings(adapter, **changes)
    assert message in str(refused.value)


def test_targets_and_blocks_that_the_model_does_not_have_are_refused() -> None:
    latent = MODELS["deepseek_v3"]
    assert isinstance(latent.mla, MlaConfig)
    adapter = settings({"targets": ["k"]}).adapter
    assert adapter is not None
    with pytest.raises(ValueError, match="no 'k' that can be adapted; it has q_down, q_up, kv_down, o, gate, up, down"):
        adapter.check_model("train.sft.adapter", latent, MeshConfig())
    nf4 = settings({"base": "nf4"}).adapter
    assert nf4 is not None
    with pytest.raises(ValueError, match="blocks of 64 rows, and a matrix of the model has 32: leave it out"):
        nf4.check_model("train.sft.adapter", MODELS["llama"], MeshConfig())
    wide = MODELS["llama"].model_copy(update={"d_model": 128, "num_heads": 16, "d_ff": 256})
    nf4.check_model("train.sft.adapter", wide, MeshConfig(fsdp=2, tensor=2))
    with pytest.raises(ValueError, match="has 128, cut into 4 by the mesh"):
        nf4.check_model("train.sft.adapter", wide, MeshConfig(fsdp=4))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_count_is_that_of_the_arrays(family: str, kind: str) -> None:
    model = settings({"rank": 3, "kind": kind}).trained(MODELS[family])
    shapes = abstract_params(model)[ADAPTER]
    assert num_adapter_params(model) == sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 0


def test_a_column_of_zeros_stays_one_and_small_changes_of_length_count_in_bfloat16() -> None:
    known = Parameter((1, 8, 4), ("layers", "embed", "heads"), is_matrix=True, fan_in=-2)
    config = MODELS["llama"].model_copy(update={"compute_dtype": "bfloat16"})
    weight = jnp.ones((1, 8, 4)).at[..., 1].set(0)
    a, b, magnitude = jnp.ones((1, 2, 8)), jnp.zeros((1, 2, 4)), lengths(weight) * jnp.asarray([1, 1, 1.001, 0.999])
    used = gathered(config, {"q": known}, {"q": LowRankWeight(weight, a, b, magnitude, 1.0)})["q"]
    np.testing.assert_allclose(used.magnitude, [[1, 0, 1.001, 0.999]], rtol=1e-6)
    whole = merged(weight, a, b, magnitude)
    np.testing.assert_allclose(whole[0, 0], [1, 0, 1.001, 0.999], rtol=1e-6)


@pytest.mark.long
def test_experts_and_latents_in_nf4_are_trained_as_they_are_merged() -> None:
    """And without the adapter they are what they were with a fresh one."""
    sizes: dict[str, Any] = {
        "d_model": 128,
        "d_ff": 128,
        "num_heads": 8,
        "num_kv_heads": 8,
        "head_dim": 24,
        "compute_dtype": "float32",
    }
    latent = MODELS["deepseek_v3"]
    assert latent.mla is not None and latent.moe is not None
    sizes["mla"] = latent.mla.model_copy(
        update={"q_lora_rank": 128, "kv_lora_rank": 128, "nope_head_dim": 16, "rope_head_dim": 8, "v_head_dim": 16}
    )
    sizes["moe"] = latent.moe.model_copy(update={"d_ff": 64})
    base = latent.model_copy(update=sizes)
    model = settings({"rank": 3, "kind": "dora", "base": "nf4"}).trained(base)
    params = with_fresh_adapter(model, random_params(base), jax.random.key(0))
    draws = np.random.default_rng(0)
    tokens = draws.integers(0, base.vocab_size, (2, 16))
    moved = jax.tree.map(lambda x: x + 0.1 * draws.standard_normal(x.shape, np.float32), params[ADAPTER])
    found = all_logits(model, params | {ADAPTER: moved}, tokens)
    merged = all_logits(base, without_adapter(model, params | {ADAPTER: moved}), tokens)
    fresh = all_logits(model, params, tokens)
    np.testing.assert_allclose(found, merged, atol=1e-4)
    np.testing.assert_allclose(all_logits(*adapter_off(model, params), tokens), fresh, atol=1e-4)
    assert np.abs(found - fresh).max() > 0.1


def test_an_adapter_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    model, _, _ = base_of("llama3_all", tmp_path)
    folder = GOLDEN / "adapters" / "llama3_all"
    read_trained(model, folder)
    for change, message in (
        ({"alpha": 3.0}, "has rank 3 and scale 1.1547, the stage 3 and 1.73205"),
        ({"targets": ("q", "v", "o")}, "has blocks.0.attention.k"),
        ({"kind": "dora"}, "use_dora=False, and the stage has kind=dora"),
    ):
        assert model.adapter is not None
        other = model.model_copy(update={"adapter": model.adapter.model_copy(update=change)})
        with pytest.raises(AdapterError, match=message):
            read_trained(other, folder)
