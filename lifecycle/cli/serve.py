"""`lifecycle serve`: an OpenAI-compatible server over the registry's aliases or one bundle; requests are logged."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from lifecycle.cli.aliases import AliasedModels
from lifecycle.cli.arguments import ConfigOrBundle, Overrides, read_config
from lifecycle.cli.make import BUNDLES, start_jax
from lifecycle.cli.serve_hosts import end_server, follow, leading
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import Section, digest, read_settings
from lifecycle.core.distributed import errors_are_shared, process_count, process_index
from lifecycle.core.files import is_writable, user_cache
from lifecycle.core.platform import platform
from lifecycle.inference.adapters import BankSizes
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.drafters import drafter_for
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import EngineError
from lifecycle.inference.hosts import NOTICE_S, Leader
from lifecycle.inference.runner import DispatchObserver
from lifecycle.ops.cost import CostMeter, DevicePrice, PriceConfig
from lifecycle.ops.registry import SHOWN_HASH, Registry, RegistryError, verify
from lifecycle.ops.request_log import RequestLog, RequestLogConfig, RequestRecord
from lifecycle.parallel.mesh import build_mesh
from lifecycle.serving.app import create_app
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.record import FinishedRequest, RequestObserver
from lifecycle.serving.server import listen, url
from lifecycle.serving.server import serve as answer
from lifecycle.stages.config import RunConfig
from lifecycle.stages.storage import fetch_version, following_registry, read_registry

type Start = Callable[[str, str], Served]  # a model by a name that every process knows, and its time in ISO 8601
type Find = Callable[[str], Path]  # the bundle's folder of such a name


class ServerConfig(Section):
    """The settings of a server without a run."""

    serve: ServeConfig = ServeConfig()
    price: PriceConfig = PriceConfig()
    requests: RequestLogConfig = RequestLogConfig()


@errors_are_shared()
def serve(config_or_bundle: ConfigOrBundle, /, *overrides: Overrides) -> None:
    """Serves OpenAI's API until SIGTERM or Ctrl-C; prints the address when it is ready. Ends with status 1 if an engine
    fails, so that a supervisor starts it again. In a job of several processes they serve together, at process 0."""
    if config_or_bundle.is_dir():
        serve_bundle(config_or_bundle, read_settings(ServerConfig, overrides))
    else:
        serve_versions(read_config(config_or_bundle, overrides))


def serve_versions(config: RunConfig) -> None:
    """Serves the aliases of a run's registry."""
    settings = ServerConfig(serve=config.serve, price=config.price, requests=config.requests)
    console = terminal()
    log: Path | None = config.request_log_path
    if config.requests.log is None and not is_writable(config.folder):
        _say(console, f"{config.folder} is read-only: no request log; requests.log=FILE writes it elsewhere")
        log = None

    def find(name: str) -> Path:
        read_registry(config)  # another process may know of it first
        version = Registry(config.registry_path).resolve(name)
        fetch_version(config, version)
        verify(version)
        return version.path

    def open_models(start: Start) -> AliasedModels:
        read_registry(config)
        registry = Registry(config.registry_path)
        models = AliasedModels(registry, lambda version: start(version.hash, version.manifest.created), console)
        if not models:
            raise RegistryError(f"{config.folder}: nothing is registered yet; make it with: lifecycle run CONFIG")
        return models

    @contextmanager
    def following(models: AliasedModels) -> Generator[None]:
        with following_registry(config, lambda text: _say(console, text)), models.following():
            yield

    _serve(settings, config.folder, log, console, find, open_models, following)


def serve_bundle(bundle: Path, settings: ServerConfig) -> None:
    """Serves one bundle outside any registry, under the name of its folder and under its hash."""

    def open_models(start: Start) -> dict[str, Served]:
        name, changed = bundle.resolve().name, datetime.fromtimestamp(bundle.stat().st_mtime, UTC)
        served = start(name, changed.isoformat())
        _say(console, f"{name:<12} {served.version[:SHOWN_HASH]}")
        return {name: served, served.version[:SHOWN_HASH]: served}

    console = terminal()
    cache, log = user_cache() / BUNDLES, settings.requests.log
    _serve(settings, cache, log, console, lambda _: bundle, open_models, lambda _: nullcontext())


def _serve[M: Mapping[str, Served]](
    settings: ServerConfig,
    cache: Path,
    log_path: Path | None,
    console: Console,
    find: Find,
    open_models: Callable[[Start], M],
    following: Callable[[M], AbstractContextManager[None]],
) -> None:
    """Serves until a signal. `cache` keeps compiled programs; without `log_path`, requests are not logged."""
    # first: if the port is taken, fail before compiling
    listener = listen(settings.serve) if process_index() == 0 else None
    start_jax(cache, {"settings": digest(settings.plain())[:12]}, kept_from_s=0)  # the next start compiles nothing
    if listener is None:
        follow(settings.serve, find)
        return
    meter = CostMeter()
    with ExitStack() as opened:
        opened.callback(listener.close)
        leader = opened.enter_context(leading()) if process_count() > 1 else None
        charge = None if log_path is None else meter.charge

        def start(name: str, created: str) -> Served:
            with nullcontext() if leader is None else leader.opening(name):
                return _start(settings.serve, find(name), created, charge, opened, leader)

        models = open_models(start)
        observers = []
        if log_path is not None:
            log = RequestLog(log_path, settings.requests, _price(settings.price, console))
            opened.callback(log.close)
            observers.append(_recorder(log, meter))
        opened.enter_context(following(models))
        app = create_app(models, settings.serve, observers)
        _say(console, f"serving at {url(listener)}  (Ctrl-C ends it)")
        answer(app, listener)
        if broken := [name for name, served in models.items() if not served.engine.is_alive]:
            if leader is not None and (problem := leader.lost(NOTICE_S)) is not None:
                raise problem
            raise EngineError(f"{broken[0]}: the engine failed, its traceback is in the log; start the server again")


def _start(
    config: ServeConfig,
    bundle: Path,
    created: str,
    charge: DispatchObserver | None,
    opened: ExitStack,
    leader: Leader | None,
) -> Served:
    mesh = build_mesh(config.mesh)
    model = load_bundle(bundle, mesh, config.weights, is_apart=True)
    drafter = drafter_for(config.speculation, model, bundle, mesh, config.weights, config.max_seq_len)
    engine = Engine(
        model,
        num_slots=config.num_slots,
        max_queue=config.max_queue,
        max_seq_len=config.max_seq_len,
        cache_tokens=config.cache_tokens,
        drafter=drafter,
        kv_cache=config.kv_cache,
        adapters=None if config.adapters is None else BankSizes(config.adapters.slots, config.adapters.rank),
        on_dispatch=charge,
        warm_up=True,
        mesh=mesh,
        on_broken=end_server,  # the requests that other versions run may end
        leader=leader,
    )
    opened.enter_context(engine)
    return Served(engine, int(datetime.fromisoformat(created).timestamp()))


def _price(config: PriceConfig, console: Console) -> DevicePrice:
    """The price of a device-hour; prints a note if it is zero."""
    price = config.of_device(platform(), os.cpu_count() or 1)
    if not price.hour:
        _say(console, "requests are logged with a cost of 0; set what a device costs: price.device_hour=PRICE")
    return price


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
                user="/".join(name for name in (request.key, request.user) if name) or None,
            )
        )

    return record
