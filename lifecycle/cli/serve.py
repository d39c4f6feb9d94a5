"""`lifecycle serve`: the registry's aliases as models of an OpenAI-compatible server, every request logged."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from threading import Event, Thread

from rich.console import Console

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import start_jax
from lifecycle.core.platform import platform
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import EngineError
from lifecycle.ops.cost import CostMeter, DevicePrice
from lifecycle.ops.registry import Registry, RegistryError, Version, verify
from lifecycle.ops.request_log import RequestLog, RequestRecord
from lifecycle.parallel.mesh import build_mesh
from lifecycle.serving.app import create_app
from lifecycle.serving.choices import Served
from lifecycle.serving.record import FinishedRequest, RequestObserver
from lifecycle.serving.server import listen, url
from lifecycle.serving.server import serve as answer
from lifecycle.stages.config import PRODUCTION, RunConfig

FOLLOW_S = 1.0  # how often the registry is polled


def serve(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Serves OpenAI's API until SIGTERM or Ctrl-C; prints the address when it is ready. Ends with status 1 if an engine
    fails, so that a supervisor starts it again."""
    serve_versions(read_config(config, overrides))


def serve_versions(config: RunConfig) -> None:
    """Serves the registry's aliases until SIGTERM or Ctrl-C."""
    listener = listen(config.serve)  # first: if the port is taken, fail before compiling
    start_jax(config.folder)
    console = Console()
    meter = CostMeter()
    with ExitStack() as opened:
        opened.callback(listener.close)
        models = AliasedModels(
            Registry(config.registry_path), lambda version: _start(config, version, meter, opened), console
        )
        if not models:
            raise RegistryError(f"{config.folder}: nothing is registered yet; make it with: lifecycle run CONFIG")
        log = RequestLog(config.request_log_path, config.requests, _price(config, console))
        opened.callback(log.close)
        opened.enter_context(models.following())
        app = create_app(models, config.serve, [_recorder(log, meter)])
        console.print(f"serving at {url(listener)}  (Ctrl-C ends it)", markup=False, highlight=False)
        answer(app, listener)
        if broken := [name for name, served in models.items() if not served.engine.is_alive]:
            raise EngineError(f"{broken[0]}: the engine failed, its traceback is in the log; start the server again")


class AliasedModels(Mapping[str, Served]):
    """Models by alias, production first, and by short hash; follows a moved alias within a second or two.

    A version stays loaded after its alias has moved on, so moving back is immediate. One that cannot be loaded is
    reported, and the alias keeps serving its old version.
    """

    def __init__(self, registry: Registry, start: Callable[[Version], Served], console: Console) -> None:
        self._registry, self._start, self._console = registry, start, console
        self._aliases: dict[str, str] = {}
        self._by_hash: dict[str, Served] = {}
        self._table: dict[str, Served] = {}
        self._refresh()

    def __getitem__(self, name: str) -> Served:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Polls the registry every second, in a thread, while the block runs."""
        stop = Event()

        def follow() -> None:
            while not stop.wait(FOLLOW_S):
                try:
                    self._refresh()
                except ValueError as error:  # from the registry
                    self._report(error)

        thread = Thread(target=follow, name="aliases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _refresh(self) -> None:
        aliases = self._registry.aliases()
        if aliases == self._aliases:
            return
        self._aliases = aliases  # before the versions are loaded: one that fails is reported once
        for version in set(aliases.values()) - self._by_hash.keys():
            self._load(version)
        names = sorted(aliases, key=lambda alias: (alias != PRODUCTION, alias))
        loaded = [alias for alias in names if aliases[alias] in self._by_hash]
        kept = {alias: self._table[alias] for alias in names if alias in self._table}
        table = kept | {alias: self._by_hash[aliases[alias]] for alias in loaded}
        table |= {self._registry.resolve(version).short: served for version, served in self._by_hash.items()}
        self._table = table  # replaced atomically: requests see the old table or the new one
        for alias in loaded:
            self._console.print(f"{alias:<12} {aliases[alias][:12]}", markup=False, highlight=False)

    def _load(self, version: str) -> None:
        """Starts an engine. Once models are served, a version that cannot be loaded is reported and left out."""
        try:
            self._by_hash[version] = self._start(self._registry.resolve(version))
        except ValueError as error:  # from the registry or a bundle
            if not self._table:
                raise
            self._report(error)

    def _report(self, error: ValueError) -> None:
        self._console.print(f"alias ignored: {error}", markup=False, highlight=False)


def _start(config: RunConfig, version: Version, meter: CostMeter, opened: ExitStack) -> Served:
    verify(version)
    mesh = build_mesh(config.serve.mesh)
    engine = Engine(
        load_bundle(version.path, mesh),
        num_slots=config.serve.num_slots,
        max_queue=config.serve.max_queue,
        max_seq_len=config.serve.max_seq_len,
        on_dispatch=meter.charge,
        warm_up=True,
        mesh=mesh,
        on_broken=lambda: os.kill(os.getpid(), signal.SIGTERM),  # the requests that other versions run may end
    )
    opened.enter_context(engine)
    return Served(engine, int(datetime.fromisoformat(version.manifest.created).timestamp()))


def _price(config: RunConfig, console: Console) -> DevicePrice:
    """The price of a device-hour; prints a note if it is zero."""
    price = config.price.of_device(platform(), os.cpu_count() or 1)
    if not price.hour:
        console.print("requests are logged with a cost of 0; set what a device costs: price.device_hour=PRICE")
    return price


def _recorder(log: RequestLog, meter: CostMeter) -> RequestObserver:
    def record(request: FinishedRequest) -> None:
        device_s = sum(meter.finish(name) for name in request.generation_ids)
        log.write(
            RequestRecord(
                id=request.id,
                time=request.time,
                route=request.model or request.route,
                version=request.version,
                status=request.status,
                finish_reason=request.finish_reason,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=request.completion_tokens,
                latency_s=request.latency_s,
                first_token_s=request.first_token_s,
                device_s=device_s,
                prompt=request.prompt,
                completion=request.completion,
                user=request.user,
            )
        )

    return record
