"""Traces the engine's programs from shapes alone, to compile them for devices that are not present."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import PyTree
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.pages import PagePlan
from lifecycle.inference.programs import DispatchRows, decode, prefill
from lifecycle.inference.scheduler import MAX_STEPS
from lifecycle.inference.slots import SlotTable
from lifecycle.inference.state import SlotState, check_mesh, init_slots, num_groups, page_plan
from lifecycle.model.config import CacheFormat, ModelConfig, WeightFormat
from lifecycle.model.params import Params, abstract_in_use, axes_apart, compute_dtype, layers_apart
from lifecycle.model.weight_formats import axes_in_use, check_groups, in_format
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import AnyMesh, computing_on, tree_shardings


@dataclass(frozen=True)
class AbstractEngine:
    """An engine of shapes: its weights and cache in formats, for `num_slots` contexts of `length` on a mesh.

    All methods raise `ConfigError` for a mesh that does not fit.
    """

    config: ModelConfig
    num_slots: int
    length: int
    mesh: AnyMesh
    weights: WeightFormat | None = None
    kv_cache: CacheFormat | None = None
    num_kept: int | None = None  # ids that are recorded of each draw, as in `generate`

    def prefill(self) -> jax.stages.Traced:
        """Prefill of the longest chunk into a slot of each group; call `.lower()` on the result."""
        table = self._table()
        size = table.plan.chunk
        return self._traced(prefill, table.prompt_rows([Chunk(slot=0, start=0, size=size, padded=size)], [[0] * size]))

    def decode(self) -> jax.stages.Traced:
        """A decode dispatch over all slots. Its loop over steps has no fixed length: it counts as one step."""
        return self._traced(decode, self._table().decode_rows(MAX_STEPS))

    def arguments(self) -> tuple[Params, SlotState]:
        """Shapes and shardings of the weights as the engine holds them, and of its slots."""
        check_mesh(self.config, self.mesh, self.num_slots)
        with computing_on(self.mesh):
            check_groups(self.config, MeshConfig(**self.mesh.shape), self.weights)
            params = abstract_in_use(self.config)
            params = jax.eval_shape(partial(in_format, self.config, weights=self.weights), params)
            params = jax.eval_shape(partial(layers_apart, self.config), params)
            state = jax.eval_shape(self._slots)
            axes = axes_in_use(axes_apart(self.config), params)
        params = _placed(params, tree_shardings(self.mesh, axes))
        return params, _placed(state, tree_shardings(self.mesh, state.logical_axes()))

    def _slots(self) -> SlotState:
        sizes = self.num_slots, num_groups(self.mesh), self.length, compute_dtype(self.config)
        plan = self._plan()
        return init_slots(self.config, plan.num_pages, plan.size, *sizes, kv_cache=self.kv_cache)

    def _plan(self) -> PagePlan:
        return page_plan(self.config, self.num_slots, num_groups(self.mesh), self.length)

    def _table(self) -> SlotTable:
        with computing_on(self.mesh):
            plan = self._plan()
        sizes = self.num_slots, plan, self.length, self.config.vocab_size, num_groups(self.mesh)
        return SlotTable(*sizes, num_kept=self.num_kept)

    def _traced(self, program: Any, rows: DispatchRows) -> jax.stages.Traced:
        """`program` is a jitted function; `jax.stages.Wrapped` does not say what `trace` takes."""
        params, state = self.arguments()
        rows = jax.tree.map(lambda x: _shape(x, NamedSharding(self.mesh, P())), rows)
        return program.trace(self.config, self.config.vocab_size, self.mesh, None, params, state, rows)


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(_shape, tree, shardings)


def _shape(array: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
