"""A tiny model, and a server in a thread: real uvicorn on a random port."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import jax
import openai
import uvicorn

from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import init_params
from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.job import Served
from lifecycle.serving.record import FinishedRequest
from lifecycle.serving.server import listen, url
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate

KEY = "secret-\u00e9"


def tiny_model(version: str = "a" * 64) -> Model:
    """Random weights; it never ends an answer by itself, so that lengths are known."""
    tokenizer = ByteTokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, d_ff=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16,
        max_seq_len=4096,
    )  # fmt: skip
    endless = SamplingParams(stop_ids=())
    params = init_params(config, jax.random.key(3))
    return Model(config, params, tokenizer, ChatTemplate(tokenizer), endless, version)


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
        return httpx.post(f"{self.base}{path}", json=body, timeout=60)

    def wait_for_record(self, count: int) -> FinishedRequest:
        """The record of the newest request, once there are `count` of them."""
        deadline = time.monotonic() + 20
        while len(self.records) < count:
            assert time.monotonic() < deadline, "the request was not recorded"
            time.sleep(0.01)
        return self.records[-1]


def start(models: dict[str, Served], config: ServeConfig, records: list[FinishedRequest]) -> Iterator[str]:
    app = create_app(models, config, [records.append])
    listener: socket.socket = listen(config)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield url(listener)
    server.should_exit = True
    thread.join()
