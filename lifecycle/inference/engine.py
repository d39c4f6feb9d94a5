"""The engine: a runner in its own thread, for requests that arrive at any time from any thread."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from lifecycle.core.config import ConfigError
from lifecycle.core.rendezvous import JobError
from lifecycle.inference.adapters import AdapterBank, BankSizes, HeldAdapter
from lifecycle.inference.drafting import Drafter
from lifecycle.inference.generation import EngineError, Generation
from lifecycle.inference.hosts import Leader
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Embedding, Pooling
from lifecycle.inference.runner import DispatchObserver, Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.scheduler import DISPATCH_S
from lifecycle.inference.stats import EngineStats
from lifecycle.inference.turns import ALONE
from lifecycle.model.config import CacheFormat
from lifecycle.weights.adapters import read_adapter

LOG = logging.getLogger(__name__)
BROKEN = "the engine has stopped by an error; its traceback is in the log"


class Engine:
    """Runs one model. `submit` from any thread; close it, or use it in a `with` block.

    Engines share nothing: several in one process run concurrently, also on one device.
    """

    def __init__(
        self,
        model: Model,
        num_slots: int = 8,
        max_queue: int = 64,
        max_seq_len: int | None = None,
        on_dispatch: DispatchObserver | None = None,
        warm_up: bool = False,
        mesh: Mesh | None = None,
        on_broken: Callable[[], None] | None = None,
        dispatch_s: float = DISPATCH_S,
        cache_tokens: int | None = None,
        drafter: Drafter | None = None,
        leader: Leader | None = None,
        kv_cache: CacheFormat | None = None,
        adapters: BankSizes | None = None,
    ) -> None:
        """`max_seq_len` shortens the model's context; `warm_up` compiles everything before the first request.

        `cache_tokens`: the KV cache holds so many tokens of all requests together; None: a whole context in each slot.
        Where they run out, the request that came last waits and is computed again, to the same tokens. `drafter`:
        foresees tokens, so that they come sooner; they are the same without. `kv_cache`: the cache's format, if not the
        compute dtype (`docs/precision.md`). `adapters`: room for low-rank adapters, of which each request may have one;
        None: for none.

        The engine's thread calls `on_dispatch` after each dispatch, and `on_broken` once if it fails itself: no request
        is answered from then on. `dispatch_s`: how long a dispatch of decode steps should take, twice as long where all
        slots decode and nobody waits; with infinity as many steps as there are, and more of prompts between them, where
        nobody reads along. `mesh`: of this process's devices; by default the model is on the first. With a `leader`,
        which is `opening` it, of all processes of the job, and always warm. Raises `ConfigError` for a mesh that does
        not fit the model or the slots, or too few `cache_tokens`.
        """
        is_apart = mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)
        if leader is None and not is_apart:
            raise ConfigError(
                "an engine of one process runs on that process's devices, but this mesh spans several processes; "
                "`lifecycle serve` runs one over all of them"
            )
        self.num_slots = num_slots
        sizes = num_slots, max_queue, max_seq_len
        self._leading = None if leader is None else leader.witness()
        self._taking = nullcontext() if leader is None else leader.taking
        self._runner = Runner(
            model,
            *sizes,
            on_dispatch=on_dispatch,
            dispatch_s=dispatch_s,
            mesh=mesh,
            cache_tokens=cache_tokens,
            kv_cache=kv_cache,
            drafter=drafter,
            adapters=adapters,
            witness=self._leading or ALONE,
        )
        self.model, self.max_seq_len = self._runner.model, self._runner.max_seq_len
        self._is_broken, self._ended = False, threading.Event()
        self._on_broken = on_broken
        if leader is not None:
            leader.agree(model.version, self._fail)
        if warm_up or leader is not None:
            self._runner.warm_up()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        adapter: HeldAdapter | None = None,
        prediction: Sequence[int] = (),
    ) -> Generation:
        """Queues a request of token ids, with an adapter of this engine's bank. `prediction`: ids that the output may
        have, for an engine that `takes_predictions`. Raises what `Runner.submit` raises, and `EngineError` after the
        engine's thread failed."""
        if self._is_broken:
            raise EngineError(BROKEN)
        return self._runner.submit(prompt, params, adapter, prediction)

    @property
    def takes_predictions(self) -> bool:
        """Whether drafts may be taken from what a request foresees."""
        return self._runner.takes_predictions

    def embed(self, prompt: Sequence[int], pooling: Pooling, adapter: HeldAdapter | None = None) -> Embedding:
        """Queues a request for the vector of a prompt of token ids. Raises what `submit` raises."""
        if self._is_broken:
            raise EngineError(BROKEN)
        return self._runner.embed(prompt, pooling, adapter)

    def compile(self, grammar: str) -> None:
        """Makes a grammar ready, from any thread: `submit` then takes no time for it. Raises `GrammarError`."""
        self._runner.compile(grammar)

    @property
    def adapters(self) -> AdapterBank | None:
        """The adapters that requests may have, loaded and unloaded from any thread; None without room for any."""
        return self._runner.adapters

    def load_adapter(self, folder: Path) -> HeldAdapter:
        """Reads an adapter's folder, in every process of the job, and gives it a place. From any thread.

        Raises `AdapterError` for one that does not fit, or is not the same everywhere, and `WeightsError` for damaged
        files; then it is loaded nowhere.
        """
        assert self.adapters is not None, "there is room for some"
        adapter = read_adapter(self.model.config, folder)
        if self._leading is None:
            return self.adapters.load(adapter)
        return self.adapters.load(adapter, partial(self._leading.loading, folder, adapter.version))

    @property
    def max_requests(self) -> int:
        """The most requests that the engine holds at once, running and queued."""
        return self._runner.max_requests

    @property
    def stats(self) -> EngineStats:
        """Counters since the start, and the state now."""
        return self._runner.stats

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered: False after an error and after `close`."""
        return not self._is_broken and self._thread.is_alive()

    def close(self) -> None:
        """Finishes the accepted requests, then stops the thread. One that hangs, for a process is lost, is left."""
        self._runner.close()
        self._ended.wait()
        if not self._is_broken:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        runner = self._runner
        try:
            while not runner.is_done:
                with runner.changed:
                    runner.changed.wait_for(lambda: runner.has_work or runner.is_done)
                with self._taking:
                    runner.turn()
        except JobError as error:  # of another process, which needs no traceback
            LOG.error("the engine has stopped: %s", error)
        finally:
            if not runner.is_done and not self._is_broken:
                self._fail()
            self._ended.set()

    def _fail(self) -> None:
        """No request is answered from now on; from any thread, also while the engine's hangs in a dispatch."""
        self._is_broken = True
        self._runner.abort(EngineError(BROKEN))
        if self._on_broken is not None:
            self._on_broken()
        self._ended.set()
