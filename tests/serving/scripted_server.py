"""A server whose answers a test writes beforehand, with the chat page: failures, delays, broken connections."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving_server import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lifecycle.serving.config import ServeConfig
from lifecycle.serving.errors import RequestError
from lifecycle.serving.pages import page_routes

CONTEXT = 100


@dataclass
class Reply:
    """Chunks of an answer. After the first one it waits until `go` is set; without `is_whole` after the last one, and
    breaks the connection."""

    texts: list[str]
    reasoning: list[str] = field(default_factory=list)
    is_whole: bool = True
    reason: str = "stop"
    go: threading.Event | None = None
    gone: threading.Event = field(default_factory=threading.Event)  # the client has left before the end

    async def events(self) -> AsyncGenerator[str]:
        """As the server sends them."""
        try:
            async for text in self._events():
                yield text
        except asyncio.CancelledError:
            self.gone.set()
            raise

    async def _events(self) -> AsyncGenerator[str]:
        deltas = [{"reasoning_content": text} for text in self.reasoning] + [{"content": text} for text in self.texts]
        yield ": a comment, as proxies send it\n\n"
        for number, delta in enumerate(deltas):
            yield event({"choices": [{"delta": delta, "finish_reason": None}], "system_fingerprint": "f" * 64})
            while number == (0 if self.is_whole else len(deltas) - 1) and self.go is not None and not self.go.is_set():
                await asyncio.sleep(0.01)
        if not self.is_whole:
            raise ConnectionResetError
        yield event({"choices": [{"delta": {}, "finish_reason": self.reason}]})
        yield event({"choices": [], "usage": {"completion_tokens": len(deltas)}})
        yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


FULL = RequestError(400, "the context holds 100 tokens", code="context_length_exceeded")
BUSY = RequestError(429, "the server is busy", code="queue_full", headers={"Retry-After": "1"})
LOCKED = RequestError(401, "incorrect API key")


@dataclass
class Scripted:
    """The replies to come, and the bodies that were sent."""

    base: str = ""
    replies: deque[Reply | RequestError] = field(default_factory=deque)
    sent: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    async def models(self, _: Request) -> Response:
        cards = [{"id": name, "version": name * 8, "max_model_len": CONTEXT} for name in ("production", "candidate")]
        return JSONResponse({"data": cards})

    async def chat(self, request: Request) -> Response:
        self.sent.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        reply = self.replies.popleft()
        return reply.response() if isinstance(reply, RequestError) else StreamingResponse(reply.events())

    def asked(self) -> list[list[str]]:
        """The messages of each request since the last look, without the system message."""
        found = [[m["content"] for m in body["messages"] if m["role"] != "system"] for body in self.sent]
        self.sent.clear()
        return found


@contextmanager
def scripted() -> Generator[Scripted]:
    server = Scripted()
    routes = [
        *page_routes(),
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    with running(Starlette(routes=routes), ServeConfig(port=0)) as server.base:
        yield server
