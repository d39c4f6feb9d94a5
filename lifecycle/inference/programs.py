"""The device programs of continuous batching, prefill, fork and decode, with their weights and cache.

All programs take the slots' state, donated, and return it. What must hold: few compiled shapes, none after the
warm-up. A prompt is prefilled in chunks padded to one of `BUCKETS`; the number of decode steps in a dispatch is an
argument, not a shape. A slot that is not decoding is padding: it reads the cache and writes nothing.

They run in a manual `jax.shard_map` over the weights' mesh, as training does. Slots and the cache's pages are sharded
over `batch` into groups, each of which prefills its own chunk into its own pages; heads are sharded over `tensor`.
The devices of a group divide its rows' sampling among them, and all get the tokens.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Bool, Int
from lifecycle.inference.adapters import AdapterBank, BankSizes
from lifecycle.inference.decoding import Decoded, DecodeRows, decode_steps
from lifecycle.inference.drafting import Computed, Drafter
from lifecycle.inference.forks import ForkRows, forked
from lifecycle.inference.pooling import ChunkStates, chunk_states
from lifecycle.inference.prompt_scores import score_prompt
from lifecycle.inference.sampling import History, Sampled, SamplingRows, sample
from lifecycle.inference.state import SlotState, check_mesh, empty_slots, num_groups, page_plan
from lifecycle.inference.weights import weights_in_use
from lifecycle.model.adapters import Bank, bank_axes, with_adapters
from lifecycle.model.cache import Tables
from lifecycle.model.config import CacheFormat, ModelConfig
from lifecycle.model.decoder import forward_cached_taking
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, axes_apart
from lifecycle.model.weight_formats import axes_in_use
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import AnyMesh, mesh_over_devices, spec, tree_specs

# Held while a multi-device program is enqueued, not while it runs: programs that two engines start at once must reach
# all devices in the same order, or each waits in a collective for devices that have begun the other.
LAUNCH = threading.Lock()
MAX_STOP_IDS = 8  # stop ids that end a row on the device; the host compares all of them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptRows:
    """Chunks of prompts, one row per group of slots."""

    slot: Int[Array, " G"]  # within its group
    pages: Tables  # of that slot, within its group's
    tokens: Int[Array, "G T"]
    start: Int[Array, " G"]  # position of the first token
    is_first: Bool[Array, " G"]  # whether the chunk begins a request
    before: Bool[Array, "G V"]  # then: the tokens that come before it
    recent: Int[Array, "G 15"]  # the newest tokens at the chunk's end, as `History` has them
    following: Int[Array, "G T"]  # the prompt's token after each; -1: there is none
    size: Int[Array, " G"]  # tokens that are not padding; 0: the group has no chunk
    sampling: SamplingRows
    want_top: Bool[Array, ""]
    want_prompt: Bool[Array, ""]  # the log-probabilities of the tokens `following`
    adapters: Int[Array, " G"] | None  # places in the bank, if there is one


type DispatchRows = PromptRows | ForkRows | DecodeRows


@partial(jax.jit, static_argnames=("config", "num_ids", "mesh"), donate_argnames="state")
def prefill(
    config: ModelConfig,
    num_ids: int,
    mesh: AnyMesh,
    drafter: Drafter | None,
    params: Params,
    state: SlotState,
    rows: PromptRows,
    bank: Bank = None,
) -> tuple[tuple[Sampled, Sampled, ChunkStates], SlotState]:
    """Prefills each group's `tokens[:size]` at positions `start...` of its slot. The next token, `[G]`; the tokens
    `following` as if they had been sampled, `[G, T]`, -1 for all unless they are wanted; and the hidden states."""
    return _on_mesh(partial(_prefill, config, num_ids), config, mesh, drafter, params, state, rows, bank)


@partial(jax.jit, static_argnames=("config", "num_ids", "mesh"), donate_argnames="state")
def decode(
    config: ModelConfig,
    num_ids: int,
    mesh: AnyMesh,
    drafter: Drafter | None,
    params: Params,
    state: SlotState,
    rows: DecodeRows,
    bank: Bank = None,
) -> tuple[Decoded, SlotState]:
    """Up to `num_steps` steps for each decoding slot (`inference/decoding.py`)."""
    return _on_mesh(partial(decode_steps, config, num_ids), config, mesh, drafter, params, state, rows, bank)


@partial(jax.jit, static_argnames=("config", "num_ids", "mesh"), donate_argnames="state")
def fork(
    config: ModelConfig,
    num_ids: int,
    mesh: AnyMesh,
    drafter: None,
    params: Params,
    state: SlotState,
    rows: ForkRows,
    bank: Bank = None,
) -> tuple[Sampled, SlotState]:
    """In each group slots go on from the chunk that another one has just got (`inference/forks.py`)."""

    def local(_: Any, params: Params, state: SlotState, rows: ForkRows) -> tuple[Sampled, SlotState]:
        return forked(config, num_ids, state, rows)

    return _on_mesh(local, config, mesh, drafter, params, state, rows, bank)


def _on_mesh[Out](
    local: Callable[[Drafter | None, Params, SlotState, Any], tuple[Out, SlotState]],
    config: ModelConfig,
    mesh: AnyMesh,
    drafter: Drafter | None,
    params: Params,
    state: SlotState,
    rows: DispatchRows,
    bank: Bank,
) -> tuple[Out, SlotState]:
    """`local` run by every device on its part of the weights, the state and the rows; all get what was sampled."""

    def run(drafter: Drafter | None, params: Params, state: SlotState, rows: Any, bank: Bank) -> tuple[Out, SlotState]:
        return local(drafter, with_adapters(params, bank, rows.adapters), state, rows)

    axes = axes_in_use(axes_apart(config), params)
    weights, stored = tree_specs(axes), tree_specs(state.logical_axes())
    by_row = jax.tree.map(lambda x: spec("batch") if x.ndim else P(), rows)
    of_bank = None if bank is None else tree_specs(bank_axes(config))
    drafting = None if drafter is None else tree_specs(drafter.logical_axes())
    specs = {"in_specs": (drafting, weights, stored, by_row, of_bank), "out_specs": (spec("batch"), stored)}
    sampled, state = jax.shard_map(run, mesh=mesh, check_vma=False, **specs)(drafter, params, state, rows, bank)
    return jax.lax.with_sharding_constraint(sampled, NamedSharding(mesh, P())), state


def _prefill(
    config: ModelConfig, num_ids: int, drafter: Drafter | None, params: Params, state: SlotState, rows: PromptRows
) -> tuple[tuple[Sampled, Sampled, ChunkStates], SlotState]:
    cache, slot = replace(state.cache, tables=rows.pages), rows.slot[0]
    written = jnp.where(rows.size[0] > 0, slot, state.history.made.shape[0])  # a group without a chunk writes nothing
    index, start, size = jnp.arange(rows.tokens.shape[1]), rows.start[0], rows.size[0]
    positions = jnp.where(index < size, start + index, cache.length)[None]
    layers = () if drafter is None else drafter.layers
    hidden, taken, cache = forward_cached_taking(config, params, rows.tokens, positions, cache, layers)
    asked = jnp.where(rows.is_first[0], rows.before[0], state.history.asked[slot])
    made = jnp.where(rows.is_first[0], 0, state.history.made[slot])
    asked = asked.at[jnp.where(index < size, rows.tokens[0], asked.size)].set(True, mode="drop")
    last = jax.lax.dynamic_slice_in_dim(hidden[0], jnp.maximum(size - 1, 0), 1)
    scores, next_position = logits(config, params, last), rows.start + rows.size
    history = History(asked[None], made[None], rows.recent)
    sampled = sample(scores, rows.sampling, next_position, rows.want_top, history, num_ids)
    history = jax.tree.map(lambda every, one: every.at[written].set(one[0], mode="drop"), state.history, history)
    scored = score_prompt(config, params, hidden[0], rows.following[0], rows.want_prompt, num_ids)
    held = state.drafter
    if drafter is not None and held is not None:
        is_newest = (index == size - 1) & (rows.following[0] < 0)  # the token behind the prompt is the sampled one
        behind = jnp.where(is_newest, sampled.token, rows.following[0])[None]
        computed = Computed(rows.tokens, behind, positions, hidden, taken, rows.pages, "chunk")
        newest, own = drafter.follow(params, computed, held.newest[slot][None], held.cache)
        held = replace(held, cache=own, newest=held.newest.at[written].set(newest[0], mode="drop"))
    return (sampled, scored, chunk_states(hidden[0], size)), SlotState(replace(cache, tables={}), history, scores, held)


class Programs:
    """One model's weights and slots on a mesh; each call is one dispatch, and waits for its result."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        num_slots: int,
        max_seq_len: int,
        num_ids: int,
        mesh: Mesh | None = None,
        cache_tokens: int | None = None,
        drafter: Drafter | None = None,
        on_launch: Callable[[DispatchRows], None] = lambda _: None,
        on_launched: Callable[[], None] = lambda: None,
        kv_cache: CacheFormat | None = None,
        adapters: BankSizes | None = None,
    ) -> None:
        """Ids from `num_ids` on, the vocabulary's padding, are never sampled. Without a mesh, everything is on this
        process's first device. `cache_tokens`: of all slots together; None: of a whole context for each. `on_launch`
        is called before each dispatch, `on_launched` while devices compute it. Raises `ConfigError` for a mesh, or so
        few tokens, that do not fit."""
        mesh = mesh or mesh_over_devices(jax.local_devices()[:1], MeshConfig())
        check_mesh(config, mesh, num_slots)
        self.num_devices, self.num_groups = mesh.size, num_groups(mesh)
        self._launch = LAUNCH if mesh.size > 1 else nullcontext()
        self._on_launch, self._on_launched = on_launch, on_launched
        self._given = config, num_ids, mesh, None if drafter is None else drafter.in_use(mesh)
        self._params = weights_in_use(config, params, mesh)
        self.plan = page_plan(config, num_slots, self.num_groups, max_seq_len, cache_tokens)
        self._state = empty_slots(config, self.plan, num_slots, max_seq_len, mesh, drafter, kv_cache)
        self.cache_bytes = sum(array.nbytes for array in jax.tree.leaves(self._state.caches))
        self.adapters = None if adapters is None else AdapterBank(config, adapters, mesh)

    def compile(self, every: Sequence[DispatchRows]) -> None:
        """Compiles what dispatches with such arguments run, side by side; none is launched."""

        def one(rows: DispatchRows) -> None:
            program: Any = {PromptRows: prefill, ForkRows: fork, DecodeRows: decode}[type(rows)]
            with self._bank() as bank:
                lowered = program.lower(*self._given, self._params, self._state, rows, bank)
            lowered.compile()  # the call finds it

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(one, every))

    def prefill(self, rows: PromptRows) -> tuple[Sampled, Sampled | None, ChunkStates]:
        """In host memory the token after each group's chunk, `[G, 1]`, and the prompts' own if they are wanted; and the
        hidden states."""
        self._on_launch(rows)
        with self._launch, self._bank() as bank:
            (sampled, scored, states), self._state = prefill(*self._given, self._params, self._state, rows, bank)
        self._on_launched()
        scored = jax.tree.map(np.asarray, scored) if rows.want_prompt else None
        return jax.tree.map(lambda x: np.asarray(x)[:, None], sampled), scored, states

    def fork(self, rows: ForkRows) -> Sampled:
        """In host memory the token after each copy, `[N, 1]`."""
        self._on_launch(rows)
        with self._launch, self._bank() as bank:
            sampled, self._state = fork(*self._given, self._params, self._state, rows, bank)
        self._on_launched()
        return jax.tree.map(lambda x: np.asarray(x)[:, None], sampled)

    def decode(self, rows: DecodeRows) -> Decoded:
        """A dispatch of up to `num_steps` steps, in host memory."""
        self._on_launch(rows)
        with self._launch, self._bank() as bank:
            decoded, self._state = decode(*self._given, self._params, self._state, rows, bank)
        self._on_launched()
        return jax.tree.map(np.asarray, decoded)

    def _bank(self) -> AbstractContextManager[Bank]:
        return nullcontext() if self.adapters is None else self.adapters.arrays()
