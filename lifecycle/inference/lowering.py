"""Traces the engine's programs from shapes alone, to compile them for devices that are not present."""

from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import PyTree
from lifecycle.inference.decoding import DecodeRows
from lifecycle.inference.programs import PromptRows, decode, prefill, weight_axes
from lifecycle.inference.scheduler import MAX_STEPS, Chunk
from lifecycle.inference.slots import SlotTable
from lifecycle.inference.state import SlotState, check_mesh, has_layers_apart, init_slots, num_groups, page_plan
from lifecycle.model.config import CacheFormat, ModelConfig, WeightFormat
from lifecycle.model.params import Params, abstract_in_use, compute_dtype, layers_apart
from lifecycle.model.weight_formats import axes_in_use, check_groups, in_format
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import AnyMesh, tree_shardings


def trace_prefill(
    config: ModelConfig,
    num_slots: int,
    length: int,
    mesh: AnyMesh,
    weights: WeightFormat | None = None,
    kv_cache: CacheFormat | None = None,
) -> jax.stages.Traced:
    """Prefill of the longest chunk into a slot of each group, for a context of `length`; call `.lower()` on the result.

    Raises `ConfigError` for a mesh that does not fit.
    """
    table = _table(config, num_slots, length, mesh)
    size = table.plan.chunk
    rows = table.prompt_rows([Chunk(slot=0, start=0, size=size, padded=size)], [[0] * size])
    return _traced(prefill, config, (num_slots, length, mesh, weights, kv_cache), rows)


def trace_decode(
    config: ModelConfig,
    num_slots: int,
    length: int,
    mesh: AnyMesh,
    weights: WeightFormat | None = None,
    kv_cache: CacheFormat | None = None,
) -> jax.stages.Traced:
    """A decode dispatch over all slots. Its loop over steps has no fixed length: it counts as one step.

    Raises `ConfigError` for a mesh that does not fit.
    """
    rows = _table(config, num_slots, length, mesh).decode_rows(MAX_STEPS)
    return _traced(decode, config, (num_slots, length, mesh, weights, kv_cache), rows)


def _table(config: ModelConfig, num_slots: int, length: int, mesh: AnyMesh) -> SlotTable:
    groups = num_groups(mesh)
    with jax.sharding.use_abstract_mesh(_abstract(mesh)):
        plan = page_plan(config, num_slots, groups, length)
    return SlotTable(num_slots, plan, length, config.vocab_size, groups)


def _abstract(mesh: AnyMesh) -> AbstractMesh:
    return mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh


def _traced(
    program: Any,  # a jitted function; `jax.stages.Wrapped` does not say what `trace` takes
    config: ModelConfig,
    held: tuple[int, int, AnyMesh, WeightFormat | None, CacheFormat | None],  # as `abstract_arguments` takes them
    rows: PromptRows | DecodeRows,
) -> jax.stages.Traced:
    (params, state), mesh = abstract_arguments(config, *held), held[2]
    rows = jax.tree.map(lambda x: _shape(x, NamedSharding(mesh, P())), rows)
    return program.trace(config, config.vocab_size, mesh, None, params, state, rows)


def abstract_arguments(
    config: ModelConfig,
    num_slots: int,
    length: int,
    mesh: AnyMesh,
    weights: WeightFormat | None = None,
    kv_cache: CacheFormat | None = None,
) -> tuple[Params, SlotState]:
    """Shapes and shardings of the weights as the engine holds them, and of its slots for contexts of `length`.

    Raises `ConfigError` for a mesh that does not fit.
    """
    check_mesh(config, mesh, num_slots)
    with jax.sharding.use_abstract_mesh(_abstract(mesh)):
        check_groups(config, MeshConfig(**mesh.shape), weights)
        dtype, params = compute_dtype(config), abstract_in_use(config)  # of the mesh's devices
        params = jax.eval_shape(partial(in_format, config, weights=weights), params)
        if has_layers_apart():
            params = jax.eval_shape(partial(layers_apart, config), params)
        groups = num_groups(mesh)
        plan = page_plan(config, num_slots, groups, length)
        state = jax.eval_shape(lambda: init_slots(config, plan, num_slots, groups, length, dtype, kv_cache=kv_cache))
        axes = axes_in_use(weight_axes(config, state.cache.is_apart), params)
    params = _placed(params, tree_shardings(mesh, axes))
    return params, _placed(state, tree_shardings(mesh, state.logical_axes()))


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(_shape, tree, shardings)


def _shape(array: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
