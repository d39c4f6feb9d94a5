"""Runs an application until SIGTERM or SIGINT; running requests finish first."""

import asyncio
import errno
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from lifecycle.core.config import ConfigError
from lifecycle.serving.config import ServeConfig

MAX_HEADERS_S = 20.0  # for a request's headers, from the connection or from their first byte on
GRACE_S = 30  # how long requests may run after the signal: orchestrators kill after about as long


def listen(config: ServeConfig) -> socket.socket:
    """Binds the configured address; raises `ConfigError` if it is in use or not on this machine."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen()  # early clients wait until the server runs
    except OSError as error:
        listener.close()
        raise ConfigError(_explain(config, error)) from None
    return listener


def _explain(config: ServeConfig, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use on {config.host}; stop what uses it or choose another: serve.port=PORT"
    if error.errno == errno.EACCES:
        return f"port {config.port} needs privileges; choose one above 1023: serve.port=PORT"
    return f"cannot listen on serve.host={config.host}: {error.strerror}; use an address of this machine"


def url(listener: socket.socket) -> str:
    """The server's address, with the actual port if 0 was configured."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class TimedHeaders(H11Protocol):
    """Closes a connection on which a request's headers do not arrive in time, which uvicorn would wait for."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client has connected; it owes a request."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(MAX_HEADERS_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """The headers are whole as soon as uvicorn has begun a request; its body has a limit of its own."""
        super().data_received(data)
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting:
            self._end_limit()
        elif self._limit is None:  # a further request on this connection
            self._limit = self.loop.call_later(MAX_HEADERS_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self._end_limit()
        super().connection_lost(exc)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class _Server(uvicorn.Server):
    """Tells the application when it stops: requests whose body is still on its way are rejected at once."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called in the event loop after a signal, before running requests are waited for."""
        self._app.state.stopping.set()
        await super().shutdown(sockets)


def server_config(app: Starlette) -> uvicorn.Config:
    """The server's settings: what it logs, and how long it waits."""
    return uvicorn.Config(
        app, http=TimedHeaders, lifespan="off", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serves until a signal, then returns, so that the caller can close what it opened."""
    server = _Server(server_config(app), app)
    with _signals_end(server):
        server.run(sockets=[listener])


@contextmanager
def _signals_end(server: uvicorn.Server) -> Generator[None]:
    """A signal that comes before uvicorn's own handlers are there ends the server too; uvicorn raises the one that
    ended it again afterwards, for the handlers from before its own: these."""

    def end(*_: object) -> None:
        server.should_exit = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
