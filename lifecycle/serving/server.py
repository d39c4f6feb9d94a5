"""Runs an application until SIGTERM or SIGINT; running requests finish first."""

import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from lifecycle.core.config import ConfigError
from lifecycle.serving.config import ServeConfig

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


class _Server(uvicorn.Server):
    """Tells the application when it stops: requests whose body is still on its way are rejected at once."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called in the event loop after a signal, before running requests are waited for."""
        self._app.state.stopping.set()
        await super().shutdown(sockets)


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serves until a signal, then returns, so that the caller can close what it opened."""
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip
    with _signals_ignored_afterwards():
        _Server(config, app).run(sockets=[listener])


@contextmanager
def _signals_ignored_afterwards() -> Iterator[None]:
    """uvicorn re-raises the signal that ended it, for the handlers installed before its own; here, those do nothing."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
