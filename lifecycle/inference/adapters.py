"""The adapters of an engine: a bank on the device with a place for each, and who uses which.

Adapters come and go while requests run; the bank's shape stays, so nothing is compiled. What must hold: an adapter's
place is taken by another only once its last request has ended; a dispatch sees the bank before or after a change, never
in between. Of several processes that share an engine, process 0 decides who has which place (`inference/hosts.py`).
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from lifecycle.kernels.adapted import NO_ADAPTER
from lifecycle.model.adapters import Bank, Matrices, adapter_tree, bank_axes, empty_bank, write_adapter
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import compute_dtype
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.weights.adapters import Adapter, AdapterError


class BankSizes(NamedTuple):
    """How many adapters a bank holds, and of which rank at most."""

    slots: int
    rank: int


@dataclass(eq=False)
class HeldAdapter:
    """An adapter in a bank. `version` is the hash of its numbers."""

    version: str
    place: int
    num_users: int = field(default=0, init=False)
    is_open: bool = field(default=True, init=False)  # for further requests


class Lease:
    """A request's use of an adapter; `end` it once or more often."""

    def __init__(self, bank: "AdapterBank", adapter: HeldAdapter) -> None:
        self.place, self.key = adapter.place, bytes.fromhex(adapter.version)
        self._bank, self._adapter = bank, adapter
        self._has_ended = False

    def end(self) -> None:
        """The request has ended."""
        if not self._has_ended:
            self._has_ended = True
            self._bank.give_back(self._adapter)


class AdapterBank:
    """The adapters of one engine; all methods from any thread."""

    def __init__(self, config: ModelConfig, sizes: BankSizes, mesh: Mesh) -> None:
        self.sizes = sizes
        self._config, self._dtype = config, compute_dtype(config)
        self._shardings = tree_shardings(mesh, bank_axes(config))
        self._write = jax.jit(write_adapter, donate_argnames="bank", out_shardings=self._shardings)
        make = jax.jit(lambda: empty_bank(config, *sizes, self._dtype), out_shardings=self._shardings)
        self._arrays: Bank = make()
        self._free = list(reversed(range(sizes.slots)))
        self._places = threading.Lock()  # guards what is free, and the adapters' users
        self._changing = threading.Lock()  # held while the arrays are replaced, or a dispatch that reads them begins

    def warm_up(self) -> None:
        """Compiles what `load` runs; nobody may use the bank yet."""
        self.write(self._on_devices({}), 0)

    @contextmanager
    def arrays(self) -> Generator[Bank]:
        """The arrays for a dispatch, which has to begin inside the block."""
        with self._changing:
            yield self._arrays

    def load(
        self, adapter: Adapter, writing: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
    ) -> HeldAdapter:
        """Writes an adapter to a free place, inside the block of `writing` that place; what that raises leaves the
        place free. Raises `AdapterError` without one, or for one whose rank is too large."""
        tree, held = self.staged(adapter), self._hold(adapter.version)
        try:
            with writing(held.place):
                self.write(tree, held.place)
        except BaseException:
            self.unload(held)
            raise
        return held

    def staged(self, adapter: Adapter) -> Bank:
        """An adapter on the devices, to be written. Raises `AdapterError` for one whose rank is too large, and for one
        of DoRA."""
        if adapter.has_magnitudes:
            raise AdapterError(
                "the adapter is one of DoRA (use_dora), which changes the weights' columns for all requests: add it to "
                "the weights, as `lifecycle generate --adapter` does, or serve the bundle that its stage exports"
            )
        if adapter.rank > self.sizes.rank:
            raise AdapterError(
                f"the adapter has rank {adapter.rank}, this server takes up to {self.sizes.rank}: "
                f"set serve.adapters.rank={adapter.rank}"
            )
        return self._on_devices(adapter.matrices)

    def write(self, tree: Bank, place: int) -> None:
        """Writes what is `staged` to a place."""
        with self._changing:
            self._arrays = self._write(self._arrays, tree, np.int32(place))

    def _hold(self, version: str) -> HeldAdapter:
        with self._places:
            if not self._free:
                raise AdapterError(
                    f"all {self.sizes.slots} places for adapters are taken: unload one, whose place is free when its "
                    f"last request has ended, or set serve.adapters.slots={self.sizes.slots + 1}"
                )
            return HeldAdapter(version, self._free.pop())

    def _on_devices(self, matrices: Matrices) -> Bank:
        tree = adapter_tree(self._config, matrices, self.sizes.rank, self._dtype)

        def put(array: Any, sharding: Sharding) -> jax.Array:
            # `device_put` would compare the values of all processes, each of which comes here at its own time
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        return jax.block_until_ready(jax.tree.map(put, tree, self._shardings))

    def unload(self, adapter: HeldAdapter) -> None:
        """Takes no further requests for an adapter; its place is free when those that it has have ended."""
        with self._places:
            adapter.is_open = False
            self._free_if_unused(adapter)

    def lease(self, adapter: HeldAdapter) -> Lease:
        """A use of an adapter, to be ended. Raises `AdapterError` if it has been unloaded."""
        with self._places:
            if not adapter.is_open:
                raise AdapterError("the adapter has been unloaded")
            adapter.num_users += 1
        return Lease(self, adapter)

    def give_back(self, adapter: HeldAdapter) -> None:
        """Ends a use."""
        with self._places:
            adapter.num_users -= 1
            self._free_if_unused(adapter)

    def _free_if_unused(self, adapter: HeldAdapter) -> None:
        if not adapter.is_open and not adapter.num_users:
            self._free.append(adapter.place)


@contextmanager
def leased(bank: AdapterBank | None, adapter: HeldAdapter | None) -> Generator[Lease | None]:
    """A use of an adapter, if there is one, that goes on after the block unless that raises."""
    if adapter is None:
        yield None
        return
    assert bank is not None, "the adapter is of a bank"
    lease = bank.lease(adapter)
    try:
        yield lease
    except BaseException:
        lease.end()
        raise


def place_of(lease: Lease | None) -> int:
    """A request's place in the bank."""
    return NO_ADAPTER if lease is None else lease.place
