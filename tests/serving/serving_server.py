"""A server in a thread: real uvicorn on a random port."""

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import openai
import uvicorn
from starlette.applications import Starlette

from lifecycle.inference.engine import Engine
from lifecycle.serving.app import create_app
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.record import FinishedRequest
from lifecycle.serving.server import listen, server_config, url
from lifecycle.testing.waiting import LIMIT_S, wait_until

KEY, LIMITED = "secret-\u00e9", "another secret"


@dataclass
class Running:
    """A running server and what it recorded."""

    base: str
    engine: Engine
    models: dict[str, Served]
    records: list[FinishedRequest] = field(default_factory=list)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key="unused", max_retries=0)

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(f"{self.base}{path}", json=body, timeout=LIMIT_S)

    def wait_for_record(self, count: int) -> FinishedRequest:
        """The record of the newest request, once there are `count` of them."""
        wait_until(lambda: len(self.records) >= count)
        return self.records[-1]


def start(models: dict[str, Served], config: ServeConfig, records: list[FinishedRequest]) -> Iterator[str]:
    with running(create_app(models, config, [records.append]), config) as base:
        yield base


@contextmanager
def running(app: Starlette, config: ServeConfig) -> Generator[str]:
    listener: socket.socket = listen(config)
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join()
