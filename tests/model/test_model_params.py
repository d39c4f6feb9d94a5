"""What layers declare of their parameters against the arrays themselves, and parameters in use against trained ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import (
    Params,
    abstract_in_use,
    abstract_params,
    block_definition,
    init_params,
    logical_axes,
    parameters,
    params_in_use,
)
from lifecycle.parallel.axes import RULES
from lifecycle.testing.families import MODELS, random_params

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

VECTORS = {"scale", "sinks", "q_bias", "k_bias", "v_bias", "o_bias", "router_bias", "selection_bias", "gate_bias",
           "up_bias", "down_bias"}  # fmt: skip
FLOAT32 = {"scale", "sinks", "router", "router_bias", "selection_bias"}


def narrow(family: str) -> ModelConfig:
    return MODELS[family].model_copy(update={"compute_dtype": "bfloat16"})


def by_path(tree: Params) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, tuple)))


@pytest.mark.parametrize("family", MODELS)
def test_every_array_has_the_shape_and_a_known_axis_for_each_dimension_that_its_layer_declares(family: str) -> None:
    config = MODELS[family]
    made = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    assert made == abstract_params(config)
    axes = by_path(logical_axes(config))
    assert axes.keys() == by_path(made).keys()
    for path, array in by_path(made).items():
        assert len(axes[path]) == array.ndim and set(axes[path]) <= {*RULES, None}
        assert ("layers" in axes[path]) == (path[0].key == "blocks")
        assert ("modules" in axes[path]) == (path[0].key == "mtp")


@pytest.mark.parametrize("family", MODELS)
def test_vectors_and_what_stays_in_float32_are_declared(family: str) -> None:
    for path, declared in by_path(parameters(MODELS[family])).items():
        assert declared.is_matrix == (path[-1].key not in VECTORS)
        assert declared.is_float32 == (path[-1].key in FLOAT32)
        assert declared.is_stacked == (path[0].key in ("blocks", "mtp"))


@pytest.mark.parametrize(
    "family", ["gemma3_text", *(pytest.param(name, marks=pytest.mark.long) for name in ("deepseek_v3", "gpt_oss"))]
)
def test_parameters_in_use_compute_what_the_trained_ones_compute_bit_by_bit(family: str) -> None:
    config = narrow(family)
    params = random_params(config)
    used = params_in_use(config, params)
    assert jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), used) == abstract_in_use(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)

    @jax.jit
    def run(params: Params) -> jax.Array:
        return logits(config, params, forward(config, params, tokens, positions))

    np.testing.assert_array_equal(run(used), run(params))


def test_what_is_in_use_already_is_not_copied() -> None:
    config = narrow("gpt_oss")
    used = params_in_use(config, random_params(config))
    dtypes = {path[-1].key: array.dtype for path, array in by_path(used).items()}
    assert {name for name, dtype in dtypes.items() if dtype == jnp.float32} == FLOAT32 - {"selection_bias"}
    again = params_in_use(config, used)
    pointers = [[leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)] for tree in (used, again)]
    assert pointers[0] == pointers[1]


def test_declarations_are_traced_once_and_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["llama"].model_copy(update={"d_ff": 56})
    block_definition(config, is_moe=False)[1]["attention"].clear()
    monkeypatch.setattr(nnx, "eval_shape", lambda _: pytest.fail("traced again"))
    definition, declared = block_definition(config.model_copy(), is_moe=False)
    assert set(declared["attention"]) == {"q", "k", "v", "o"} and definition is block_definition(config, False)[0]
