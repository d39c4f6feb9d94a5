"""What the device keeps for the slots between dispatches: pages of the KV cache, which tokens each slot has had, and
the logits after each group's newest chunk."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.config import ConfigError
from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float
from lifecycle.inference.chunks import BUCKETS, CPU_BUCKETS
from lifecycle.inference.drafting import Drafter, NewPages
from lifecycle.inference.pages import PagePlan
from lifecycle.inference.sampling import History
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.paged_rows import PAGE
from lifecycle.model.cache import KVCache, init_pages, page_kinds, pages_of
from lifecycle.model.config import CacheFormat, ModelConfig
from lifecycle.model.params import compute_dtype
from lifecycle.parallel.axes import RULES, MeshConfig
from lifecycle.parallel.mesh import AnyMesh, tree_shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlotState:
    """What the device keeps of each slot between dispatches."""

    cache: KVCache
    history: History
    scores: Float[Array, "G V"]  # logits after the newest chunk of each group of slots
    drafter: Any = None  # what a drafter keeps of them

    @property
    def caches(self) -> list[KVCache]:
        """The model's, and the drafter's if it has one."""
        return [self.cache] if self.drafter is None else [self.cache, self.drafter.cache]

    def logical_axes(self) -> "SlotState":
        """A tree like the state whose leaves are tuples of logical axis names."""
        rows: Any = ("batch", None)
        drafter = None if self.drafter is None else self.drafter.logical_axes()
        return SlotState(self.cache.logical_axes(), History(rows, rows, rows), rows, drafter)


def page_plan(
    config: ModelConfig, num_slots: int, num_groups: int, length: int, cache_tokens: int | None = None
) -> PagePlan:
    """The pages of each group of slots for contexts of `length`: of `cache_tokens` tokens in all groups together, or
    (None) of whole contexts for all slots. Layers with a window always have pages for all slots' windows.

    Raises `ConfigError` if a group has too few for one context.
    """
    per_row, slots_per_group = pages_of(length), num_slots // num_groups
    buckets = CPU_BUCKETS if platform() == "cpu" else BUCKETS
    if cache_tokens is not None and cache_tokens < num_groups * length:
        of_groups = f" in each of the mesh's {num_groups} groups of slots" if num_groups > 1 else ""
        raise ConfigError(
            f"cache_tokens={cache_tokens} does not hold a context of {length} tokens{of_groups}; "
            f"nearest: {num_groups * length}"
        )
    most = slots_per_group * per_row if cache_tokens is None else pages_of(cache_tokens // num_groups)
    windows: dict[str, int | None] = {kind: config.window if kind == "window" else None for kind in page_kinds(config)}
    num_pages: dict[str, int] = {}
    for kind, window in windows.items():
        if window is None:
            num_pages[kind] = most
        else:
            num_pages[kind] = slots_per_group * min(per_row, pages_of(window - 1 + buckets[-1]) + 1)
    return PagePlan(PAGE, buckets, num_pages, windows)


def init_slots(
    config: ModelConfig,
    pages_per_group: Mapping[str, int],
    page: int,
    num_slots: int,
    num_groups: int,
    length: int,
    dtype: jnp.dtype | str,
    drafter: Drafter | None = None,
    kv_cache: CacheFormat | None = None,
) -> SlotState:
    """Empty slots for contexts of `length`, with so many pages of each kind, of `page` positions, in a format."""
    num_pages: Any = {kind: number * num_groups for kind, number in pages_per_group.items()}
    cache = init_pages(config, num_pages, length, dtype, page=page, kv_cache=kv_cache, is_apart=True)
    pages = NewPages(num_pages, num_slots, length, page, kv_cache)
    held = None if drafter is None else drafter.empty(pages)
    scores = jnp.zeros((num_groups, config.vocab_size), jnp.float32)
    return SlotState(cache, History.empty(num_slots, config.vocab_size), scores, held)


def empty_slots(
    config: ModelConfig,
    plan: PagePlan,
    num_slots: int,
    length: int,
    mesh: Mesh,
    drafter: Drafter | None = None,
    kv_cache: CacheFormat | None = None,
) -> SlotState:
    """`init_slots` on a mesh, compiled once for all engines of a size: reinforcement learning opens one a step. A
    single CPU's pages take memory when they are first used."""
    return _empty(config, tuple(plan.num_pages.items()), plan.size, num_slots, length, mesh, kv_cache, drafter)


@partial(jax.jit, static_argnums=range(7))
def _empty(
    config: ModelConfig,
    pages_per_group: tuple[tuple[str, int], ...],
    page: int,
    num_slots: int,
    length: int,
    mesh: Mesh,
    kv_cache: CacheFormat | None,
    drafter: Drafter | None,
) -> SlotState:
    sizes = num_slots, num_groups(mesh), length, compute_dtype(config)
    state = init_slots(config, dict(pages_per_group), page, *sizes, drafter, kv_cache)
    if mesh.size == 1:
        state = _with_zeros(state)
    return jax.lax.with_sharding_constraint(state, tree_shardings(mesh, state.logical_axes()))


def _with_zeros(state: SlotState) -> SlotState:
    """The state with caches that take no memory yet, where there is a kernel for it."""

    def zeros(x: jax.Array) -> jax.Array:
        if platform() != "cpu" or not has_kernel("untouched", x.dtype.itemsize):
            return x
        from lifecycle.kernels.untouched import untouched_zeros

        return untouched_zeros(x.shape, x.dtype)

    def zeros_of(cache: KVCache) -> KVCache:
        return jax.tree.map(zeros, cache)

    held = state.drafter
    return replace(
        state, cache=zeros_of(state.cache), drafter=None if held is None else replace(held, cache=zeros_of(held.cache))
    )


def num_groups(mesh: AnyMesh) -> int:
    """The number of groups of slots on a mesh: devices with their own rows of the batch."""
    return int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def check_mesh(config: ModelConfig, mesh: AnyMesh, num_slots: int) -> None:
    """Raises `ConfigError` if a mesh does not fit the model, the number of slots or inference."""
    for axis in ("stage", "context"):
        if mesh.shape[axis] > 1:
            raise ConfigError(
                f"mesh.{axis}={mesh.shape[axis]}: inference runs over replica, fsdp, expert and tensor; "
                f"set mesh.{axis}=1 and give its devices to one of these"
            )
    config.check_mesh(MeshConfig(**mesh.shape))
    if num_slots % (groups := num_groups(mesh)):
        nearest = max(groups, round(num_slots / groups) * groups)
        raise ConfigError(
            f"num_slots={num_slots} is not a multiple of the mesh's {groups} groups of rows (replica x fsdp x expert); "
            f"nearest: {nearest}"
        )
