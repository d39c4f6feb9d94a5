"""`lifecycle serve`: the registry's aliases as models of an OpenAI-compatible server, every request logged."""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime

from rich.console import Console

from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.engine import Engine
from lifecycle.ops.cost import CostMeter
from lifecycle.ops.registry import Registry, RegistryError, Version, verify
from lifecycle.ops.request_log import RequestLog, RequestRecord
from lifecycle.serving.app import create_app
from lifecycle.serving.job import Served
from lifecycle.serving.record import FinishedRequest, RequestObserver
from lifecycle.serving.server import listen, url
from lifecycle.serving.server import serve as answer
from lifecycle.stages.config import RunConfig
from lifecycle.stages.make import start_jax
from lifecycle.stages.register import PRODUCTION, open_registry

REQUESTS = "requests.db"


def serve(config: RunConfig) -> None:
    """Serves until SIGTERM or Ctrl-C; prints the address when it is ready."""
    listener = listen(config.serve)  # first: a port that is taken should not cost a compilation
    start_jax(config.folder)
    console = Console()
    meter = CostMeter()
    with ExitStack() as opened:
        opened.callback(listener.close)
        models = _models(config, open_registry(config), meter, opened)
        log = RequestLog(config.folder / REQUESTS, config.requests, config.price)
        opened.callback(log.close)
        app = create_app(models, config.serve, [_recorder(log, meter)])
        for name, served in models.items():
            console.print(f"{name:<12} {served.version[:12]}", markup=False, highlight=False)
        console.print(f"serving at {url(listener)}  (Ctrl-C ends it)", markup=False, highlight=False)
        answer(app, listener)


def _models(config: RunConfig, registry: Registry, meter: CostMeter, opened: ExitStack) -> Mapping[str, Served]:
    """One engine per version, under each alias that points to it, production first, and under its short hash."""
    aliases = registry.aliases()
    if not aliases:
        raise RegistryError(f"{config.folder}: nothing is registered yet; make it with: lifecycle run CONFIG")
    by_hash = {name: _start(config, registry.resolve(name), meter, opened) for name in dict.fromkeys(aliases.values())}
    names = sorted(aliases, key=lambda alias: (alias != PRODUCTION, alias))
    return {alias: by_hash[aliases[alias]] for alias in names} | {
        registry.resolve(name).short: served for name, served in by_hash.items()
    }


def _start(config: RunConfig, version: Version, meter: CostMeter, opened: ExitStack) -> Served:
    verify(version)
    engine = Engine(
        load_bundle(version.path),
        num_slots=config.serve.num_slots,
        max_queue=config.serve.max_queue,
        max_seq_len=config.serve.max_seq_len,
        on_step=meter.step,
        warm_up=True,
    )
    opened.enter_context(engine)
    return Served(engine, int(datetime.fromisoformat(version.manifest.created).timestamp()))


def _recorder(log: RequestLog, meter: CostMeter) -> RequestObserver:
    def record(request: FinishedRequest) -> None:
        core_s = sum(meter.finish(name) for name in request.generation_ids)
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
                core_s=core_s,
                prompt=request.prompt,
                completion=request.completion,
            )
        )

    return record
