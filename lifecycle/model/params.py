"""A model's parameters: a plain tree of arrays, created, described, and converted for use.

The tree has the trunk's arrays (`embed`, `norm.scale`, `head`) and, under `blocks`, those of the layers by stack
(`model/stacks.py`): layers of equal structure are stacked on a leading axis. Prediction modules, where the model has
them, are a stack under `mtp` (`model/mtp.py`), and what a training stage adds to it is `drafter` (`model/drafter.py`:
a head that drafts for it), `adapter` (`model/lora.py`: low-rank matrices beside frozen ones), `score` or `reference`, a
tree like the trunk's. On disk every layer has its own names (`weights/names.py`). `flax.nnx` defines the layers and
makes their initial values; training and inference pass a tree of plain arrays, which is merged with the modules only
inside a trace.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, PRNGKeyArray
from lifecycle.kernels.linear import is_rounded
from lifecycle.model.block import Block, Trunk
from lifecycle.model.config import ModelConfig
from lifecycle.model.drafter import VOCABULARY, Drafter, DraftVocabulary
from lifecycle.model.lora import (
    adapter_parameters,
    fresh_adapter,
    held_blocks,
    held_parameters,
    merged_blocks,
    weights_of,
)
from lifecycle.model.mtp import PredictionModule
from lifecycle.model.parameter import Parameter
from lifecycle.model.stacks import ADAPTER, DRAFTER, MODULES, MODULES_STACK, REFERENCE, SCORE, layer_groups

type Params = dict[str, Any]


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters in float32. Run it under `jax.jit` with `out_shardings`, so that no host holds a full model. A
    layer's values depend only on `key` and its number; prediction modules count as the layers after the last."""
    trunk_key, *block_keys = jax.random.split(key, config.num_layers + 1 + config.num_mtp_modules)
    blocks: Params = {}
    for group in layer_groups(config):
        is_moe = config.is_moe(group.first)
        for first, name in enumerate(group.stacks, group.first):
            keys = jnp.stack(block_keys[first : first + group.period * group.repeats : group.period])
            blocks[name] = jax.vmap(lambda k, m=is_moe: _arrays(Block(config, m, nnx.Rngs(k))))(keys)
    params = {**_arrays(Trunk(config, nnx.Rngs(trunk_key))), "blocks": blocks}
    if config.num_mtp_modules:
        keys = jnp.stack(block_keys[config.num_layers :])
        params[MODULES] = {MODULES_STACK: jax.vmap(lambda k: _arrays(PredictionModule(config, nnx.Rngs(k))))(keys)}
    if config.drafter is not None:
        params[DRAFTER] = init_drafter(config, key)
    if config.has_score:
        params[SCORE] = init_score(config, key)
    params = with_reference(config, params)
    return params if config.adapter is None else with_fresh_adapter(config, params, key)


def with_fresh_adapter(config: ModelConfig, base: Params, key: PRNGKeyArray) -> Params:
    """A base model's parameters as they are held frozen, in the compute dtype or NF4, with an adapter that changes
    nothing; a score, if the model has one, as it is."""
    assert config.adapter is not None
    declared = parameters(config.target.model_copy(update={"has_score": config.has_score}))
    held = in_use(config, {**declared, "blocks": {}}, {**base, "blocks": {}})
    blocks = held_blocks(config.adapter, declared["blocks"], base["blocks"])
    known = held_parameters(config.adapter, declared["blocks"])
    held["blocks"] = in_use(config, known, blocks)
    return {**held, ADAPTER: fresh_adapter(config.adapter, declared["blocks"], held["blocks"], key)}


def with_reference(config: ModelConfig, params: Params) -> Params:
    """The parameters with a copy of the trunk's, if the model has a reference: one that moves in float32, a fixed one
    as products use it."""
    if config.reference is None:
        return params
    declared = parameters(config.trunk)
    own = jax.tree.map(jnp.copy, {name: params[name] for name in declared})  # a step donates both
    return params | {REFERENCE: own if config.reference == "moving" else in_use(config, declared, own)}


def reference_of(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The reference in a step, and its parameters: the copy, or without one the model with its adapter off."""
    return adapter_off(config, params) if config.reference is None else (config.trunk, params[REFERENCE])


def beside_adapter(config: ModelConfig, params: Params) -> Params:
    """The parameters with those of the base as they are held frozen beside the adapter, which stays in float32."""
    base = {name: array for name, array in params.items() if name != ADAPTER}
    declared = {name: known for name, known in parameters(config).items() if name != ADAPTER}
    return in_use(config, declared, base) | {ADAPTER: params[ADAPTER]}


def adapter_off(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The model without its adapter and its parameters, as they are held: for a reference in a step."""
    base = {name: array for name, array in params.items() if name != ADAPTER}
    return config.model_copy(update={"adapter": None}), base | {"blocks": weights_of(params["blocks"])}


def without_adapter(config: ModelConfig, params: Params) -> Params:
    """The parameters of `config.target`, plain arrays in float32: what a stage's adapter has learned is in the weights
    that it was beside."""
    if config.adapter is None:
        return params
    base = {name: array for name, array in params.items() if name != ADAPTER}
    return jax.tree.map(
        lambda array: array.astype(jnp.float32), base | {"blocks": merged_blocks(config.adapter, params)}
    )


def init_drafter(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """A fresh drafter in float32; the ids of its vocabulary, and their rows, are not yet those of the target."""
    assert config.drafter is not None
    drafter = _arrays(Drafter(config, nnx.Rngs(key)))
    if config.drafter.vocab_size is None:
        return drafter
    return drafter | {VOCABULARY: _arrays(DraftVocabulary(config, nnx.Rngs(key)))}


def init_score(config: ModelConfig, key: PRNGKeyArray) -> Float[Array, " D"]:
    """A fresh score, of variance `1 / (D + 1)` (Stiennon et al. 2020, "Learning to summarize from human feedback",
    appendix B.1)."""
    return jax.random.normal(key, (config.d_model,)) * (config.d_model + 1) ** -0.5


def _arrays(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module))


def parameters(config: ModelConfig) -> Params:
    """The declarations: a tree like that of the parameters, with a `Parameter` at each leaf."""
    blocks: Params = {}
    for group in layer_groups(config):
        _, declared = block_definition(config, config.is_moe(group.first))
        stacked = jax.tree.map(lambda parameter, n=group.repeats: parameter.of_stack(n), declared)
        blocks |= dict.fromkeys(group.stacks, stacked)
    declared = {**trunk_definition(config)[1], "blocks": blocks}
    if num := config.num_mtp_modules:
        of_one = module_definition(config)[1]
        declared[MODULES] = {MODULES_STACK: jax.tree.map(lambda known: known.of_stack(num, "modules"), of_one)}
    if config.drafter is not None:
        declared[DRAFTER] = drafter_parameters(config)
    if config.has_score:
        declared[SCORE] = Parameter((config.d_model,), ("embed",), is_matrix=False, is_float32=True)
    if config.reference is not None:
        declared[REFERENCE] = parameters(config.trunk)
    if config.adapter is not None:
        declared[ADAPTER] = adapter_parameters(config.adapter, blocks)
        declared["blocks"] = held_parameters(config.adapter, blocks)
    return declared


def drafter_parameters(config: ModelConfig) -> Params:
    """The declarations of a model's drafter."""
    assert config.drafter is not None
    declared = drafter_definition(config)[1]
    if config.drafter.vocab_size is None:
        return declared
    vocabulary = _definition(DraftVocabulary, config)[1]
    return declared | {VOCABULARY: vocabulary}


def block_definition(config: ModelConfig, is_moe: bool) -> tuple[Any, Params]:
    """A layer's graph definition, to be merged with arrays, and the declarations of these arrays, not stacked."""
    return _definition(Block, config, is_moe)


def module_definition(config: ModelConfig) -> tuple[Any, Params]:
    """A prediction module's graph definition and declarations, not stacked."""
    return _definition(PredictionModule, config)


def drafter_definition(config: ModelConfig) -> tuple[Any, Params]:
    """A drafter's graph definition and declarations, without its vocabulary."""
    return _definition(Drafter, config)


def trunk_definition(config: ModelConfig) -> tuple[Any, Params]:
    """The trunk's graph definition and declarations."""
    return _definition(Trunk, config)


def _definition(module: Callable[..., nnx.Module], *settings: Any) -> tuple[Any, Params]:
    """A module's graph definition and declarations, in a tree of the caller's own."""
    definition, declared = _traced(module, *settings)
    return definition, jax.tree.map(lambda parameter: parameter, declared)


@lru_cache(maxsize=256)
def _traced(module: Callable[..., nnx.Module], *settings: Any) -> tuple[Any, Params]:
    """Traced once per config: a layer takes 5 ms, and tracing a step, placing its state and reading a checkpoint ask
    for it eleven times."""
    definition, state = nnx.split(nnx.eval_shape(lambda: module(*settings, nnx.Rngs(0))))
    return definition, nnx.to_pure_dict(state, lambda param: param.declared)


def logical_axes(config: ModelConfig) -> Params:
    """A tree like that of the parameters, whose leaves are tuples of logical axis names."""
    return jax.tree.map(lambda parameter: parameter.axes, parameters(config))


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters as they are trained, without any array."""
    return jax.tree.map(lambda known: jax.ShapeDtypeStruct(known.shape, known.dtype), parameters(config))


def compute_dtype(config: ModelConfig) -> str:
    """The dtype of products: the config's, or else float32 on a CPU and bfloat16 elsewhere."""
    return config.compute_dtype or ("float32" if platform() == "cpu" else "bfloat16")


def params_in_use(config: ModelConfig, params: Params) -> Params:
    """The parameters as products use them: in the compute dtype, except for the few that stay in float32.

    The model accepts both forms and computes the same with both, bit for bit. Parameters already in this form are
    returned without a copy. So are rounded weights.
    """

    return in_use(config, parameters(config), params)


def in_use(config: ModelConfig, declared: Params, params: Params) -> Params:
    """`params_in_use` of arrays with these declarations."""

    def leaf(held: Parameter, array: Any) -> Any:
        return array if is_rounded(array) else array.astype(dtype_in_use(config, held))

    return jax.tree.map(leaf, declared, params)


def layers_apart(
    config: ModelConfig, params: Params, part: Callable[[Any, int], Any] = lambda stack, number: stack[number]
) -> Params:
    """The parameters with each stack as the list of its layers' trees; `part` takes a layer's array from a stack.

    For decoding: on a CPU a scan copies each layer's weights out of their stack before it multiplies by them. With one
    row, 30 layers of 576 x 1,536 twice take 18 ms scanned and 8 apart. On TPUs: `inference/weights.py`.
    """
    return {**params, "blocks": in_layers(config, params["blocks"], part, lambda _: False)}


def axes_apart(config: ModelConfig) -> Params:
    """`logical_axes` of `layers_apart`."""
    axes = logical_axes(config)
    blocks = in_layers(config, axes["blocks"], lambda names, _: names[1:], lambda leaf: isinstance(leaf, tuple))
    return {**axes, "blocks": blocks}


def in_layers(
    config: ModelConfig, stacks: dict[str, Any], part: Callable[[Any, int], Any], is_leaf: Callable[[Any], bool]
) -> dict[str, list[Any]]:
    """Each stack of a tree like that of the parameters as the list of its layers' trees; `part` is a layer's part of a
    leaf."""
    repeats = {name: group.repeats for group in layer_groups(config) for name in group.stacks}

    def layers(name: str, stack: Any) -> list[Any]:
        return [
            jax.tree.map(lambda leaf, number=number: part(leaf, number), stack, is_leaf=is_leaf)
            for number in range(repeats[name])
        ]

    return {name: layers(name, stack) for name, stack in stacks.items()}


def abstract_in_use(config: ModelConfig) -> Params:
    """Shapes and dtypes of `params_in_use`, without any array."""
    return jax.eval_shape(lambda params: params_in_use(config, params), abstract_params(config))


def dtype_in_use(config: ModelConfig, parameter: Parameter) -> str:
    """The dtype in which products take a parameter."""
    return parameter.dtype if parameter.is_float32 or parameter.dtype != "float32" else compute_dtype(config)
