"""Rates and initial sizes by width against muP's table and the spectral condition; activations at four widths."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, parameters
from lifecycle.testing.jobs import objective_of
from lifecycle.testing.tiny_rows import MODEL, document_rows
from lifecycle.training.batches import one_epoch
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.training.trainer import Trainer
from lifecycle.training.transfer import at_width, rate, scale_by_width

BASE = 32
TIED = MODEL.model_copy(update={"tie_embeddings": True})
GEMMA = TIED.model_copy(update={"use_embed_scale": True, "norm_offset": 1.0})


def at(wider: int, model: ModelConfig = MODEL) -> ModelConfig:
    """The model with all widths in proportion."""
    sizes = ("d_model", "d_ff", "num_heads", "num_kv_heads")
    return model.model_copy(update={name: wider * getattr(model, name) for name in sizes})


def declared(model: ModelConfig) -> dict[tuple[str, ...], Parameter]:
    hashable: Any = model
    return _declared(hashable)


@cache
def _declared(model: Any) -> dict[tuple[str, ...], Parameter]:
    leaves = jax.tree_util.tree_leaves_with_path(parameters(model))
    return {tuple(entry.key for entry in path): known for path, known in leaves}


def rates(model: ModelConfig, name: str) -> dict[str, float]:
    config = OptimizerConfig.model_validate({"name": name, "base_width": BASE})
    return {".".join(path): rate(path, known, config, model) for path, known in declared(model).items()}


@pytest.mark.parametrize("wider", [1, 2, 8])
def test_adams_rates_are_mups(wider: int) -> None:
    """Table 8 of Yang et al. 2022, its rows for Adam: input weights and biases 1, output and hidden ones 1 / fan_in."""
    found = rates(at(wider), "adamw")
    ones = {name for name in found if name == "embed" or "norm" in name}
    assert all(found[name] == (1.0 if name in ones else 1 / wider) for name in found) and "head" in found


@pytest.mark.parametrize("wider", [2, 8])
@pytest.mark.parametrize("matrix", ["attention.k", "attention.o", "feed_forward.up", "feed_forward.down"])
def test_muons_updates_keep_the_spectral_condition(wider: int, matrix: str) -> None:
    """An update's singular values are all 0.2 sqrt(max(rows, columns)); over sqrt(fan_out / fan_in) it is constant."""

    def norm(model: ModelConfig) -> float:
        name = f"blocks.0+1.{matrix}"
        rows, columns = declared(model)[tuple(name.split("."))].shape[-2:]
        return rates(model, "muon")[name] * max(rows, columns) ** 0.5 / (columns / rows) ** 0.5

    assert norm(at(wider)) == pytest.approx(norm(MODEL))
    assert rates(at(wider), "muon")["head"] == 1 / wider  # Adam's


@pytest.mark.parametrize("model", [MODEL, TIED, GEMMA], ids=["head", "tied", "tied and scaled"])
def test_an_embedding_adds_as_much_to_hidden_states_and_to_logits_at_every_width(model: ModelConfig) -> None:
    """A row of the embedding enters the residual stream as it is (times sqrt(d_model), if scaled); logits are sums over
    d_model of products with the final norm, which a step changes by rate x rate."""
    wide = at(4, model)
    small, large = (rates(config, "adamw") for config in (model, wide))
    entry = [known["embed"] * (config.d_model**0.5 if config.use_embed_scale else 1)
             for known, config in ((small, model), (large, wide))]  # fmt: skip
    assert entry[0] == pytest.approx(entry[1])
    table = "embed" if model.tie_embeddings else "head"
    summed = [config.d_model * known[table] * known["norm.scale"] for known, config in ((small, model), (large, wide))]
    assert summed[0] == pytest.approx(summed[1])


@pytest.mark.parametrize("model", [MODEL, TIED, GEMMA], ids=["head", "tied", "tied and scaled"])
def test_initial_sizes_are_mups_and_the_base_width_changes_no_bit(model: ModelConfig) -> None:
    draw = np.random.default_rng(0)

    def fresh(config: ModelConfig) -> dict[str, Any]:
        tables: dict[str, Any] = {"embed": draw.normal(size=(96, config.d_model)) * config.d_model**-0.5}
        tables |= {} if config.tie_embeddings else {"head": tables["embed"]}
        return tables | {"norm": {"scale": np.full(config.d_model, 1 - config.norm_offset)}}

    params = fresh(model)
    same = at_width(model, BASE, params)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, two: bool((one == two).all()), params, same)))
    assert at_width(model, None, params) is params
    wide = at_width(at(4, model), BASE, fresh(at(4, model)))
    scaled = 2 if model.use_embed_scale else 1
    assert wide["embed"].std() == pytest.approx(BASE**-0.5 / scaled, rel=0.05)
    if not model.tie_embeddings:
        assert wide["head"].std() == pytest.approx(BASE**-0.5 / 4, rel=0.05)  # deviation 1 / fan_in
    effective = wide["norm"]["scale"] + model.norm_offset
    np.testing.assert_allclose(effective, scaled / 4 if model.tie_embeddings else 1.0, rtol=1e-6)


def test_without_a_base_width_nothing_is_added_and_with_one_updates_are_multiplied() -> None:
    assert scale_by_width(OptimizerConfig(), MODEL) == ()
    (rule,) = scale_by_width(OptimizerConfig(base_width=8), MODEL)
    ones: Any = {"embed": np.ones(3), "blocks": {"0+1": {"attention": {"q": np.ones(2)}}}}  # others may be frozen
    updates: Any = rule.update(ones, rule.init(ones))[0]
    assert (updates["embed"] == 1).all() and (updates["blocks"]["0+1"]["attention"]["q"] == 0.25).all()


def changes(model: ModelConfig, steps: int = 3, **optimizer: Any) -> dict[str, float]:
    """How much hidden states and logits change in a few steps, root mean square."""
    config = OptimizerConfig(learning_rate=1e-3, schedule=ScheduleConfig(kind="constant"), **optimizer)
    trainer = Trainer(model, objective_of("next_token", model), steps, config)
    batches = list(one_epoch(document_rows(), global_batch_size=8))

    @jax.jit
    def outputs(params: Params) -> tuple[jax.Array, jax.Array]:
        batch = {name: jnp.asarray(array) for name, array in batches[0].items()}
        hidden = forward(model, params, batch["tokens"], batch["positions"], batch["segment_ids"])
        return hidden / params["norm"]["scale"], logits(model, params, hidden)

    before = outputs(trainer.params)
    for step in range(steps):
        trainer.step(batches[step % len(batches)])
    moved = jax.tree.map(lambda one, two: float(jnp.sqrt(jnp.mean((one - two) ** 2))), before, outputs(trainer.params))
    return dict(zip(("hidden", "logits"), moved, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", [MODEL, TIED], ids=["head", "tied"])
def test_steps_change_activations_alike_at_all_widths(model: ModelConfig, name: str) -> None:
    """The coordinate check of Yang et al. 2022, appendix D.1: constant with the rule, growing without it."""
    widths = (1, 2, 4, 8)
    settings: dict[str, Any] = {"name": name}
    plain = [changes(at(wider, model), **settings) for wider in widths]
    ruled = [plain[0], *(changes(at(wider, model), base_width=BASE, **settings) for wider in widths[1:])]
    for known, of in (("without", plain), ("with", ruled)):
        print(f"\n{name:5} tied={model.tie_embeddings!s:5} {known:7}", end="")
        print(" logits", *(f"{change['logits']:.4f}" for change in of), end="")
        print(" hidden", *(f"{change['hidden']:.4f}" for change in of))
    assert plain[-1]["logits"] > 2 * plain[0]["logits"] and plain[-1]["hidden"] > 2 * plain[0]["hidden"]
    # the initial head is smaller at each width: its part of the logits' change falls, by the root of the width
    assert 0.3 < ruled[-1]["logits"] / ruled[0]["logits"] < 2 and 0.5 < ruled[-1]["hidden"] / ruled[0]["hidden"] < 2
