"""The HTTP application: a table of the API's routes, metrics, health and the chat page."""

import asyncio
from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lifecycle.serving.adapters import AdaptedModels, Adapting
from lifecycle.serving.choices import Served
from lifecycle.serving.config import AdaptersConfig, ServeConfig
from lifecycle.serving.desk import Desk
from lifecycle.serving.errors import RequestError
from lifecycle.serving.keys import read_keys
from lifecycle.serving.metrics import Metrics
from lifecycle.serving.openapi import document
from lifecycle.serving.pages import page_routes
from lifecycle.serving.record import RequestObserver
from lifecycle.serving.routes import endpoints


def create_app(
    models: Mapping[str, Served], config: ServeConfig, observers: Sequence[RequestObserver] = ()
) -> Starlette:
    """The application over `models` by name; each finished request is passed to `observers`.

    Raises `ConfigError` if the file of keys is faulty, or a variable that it names is not set, and `AdapterError` for
    an adapter of `config` that does not fit.
    """
    if config.adapters is not None:
        models = AdaptedModels(models, config.adapters)
    metrics = Metrics(models)
    desk = Desk(models, read_keys(config.keys), (metrics.observe, *observers), config.max_request_s)
    api = endpoints(desk, _adapting(desk, models, config.adapters))
    described = document(api)

    async def health(_: Request) -> Response:
        """200 while all engines answer, 503 with the names of those that do not."""
        broken = [name for name, served in models.items() if not served.engine.is_alive]
        if broken:
            return JSONResponse({"status": "broken", "models": broken}, 503)
        return JSONResponse({"status": "ok"})

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def describe(_: Request) -> Response:
        return JSONResponse(described)

    routes = [
        *page_routes(),
        Route("/health", health),
        Route("/metrics", show_metrics),
        Route("/openapi.json", describe),
        *(endpoint.route for endpoint in api),
    ]
    handlers = {HTTPException: _http_error, RequestError: _request_error, Exception: _internal_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.stopping = asyncio.Event()  # set by the server when it stops
    return app


def _adapting(desk: Desk, models: Mapping[str, Served], config: AdaptersConfig | None) -> Adapting | None:
    if config is None or not config.folders:
        return None
    assert isinstance(models, AdaptedModels)
    return Adapting(desk, models, config.folders)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return RequestError(error.status_code, error.detail, headers=dict(error.headers or {})).response()


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _internal_error(_: Request, error: Exception) -> Response:
    """The client's answer; the exception is raised again, and its traceback goes to the log."""
    return RequestError(500, f"internal error ({type(error).__name__})", code="internal_error").response()
