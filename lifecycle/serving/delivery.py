"""Delivery of an answer: in one piece, or as server-sent events.

What must hold: when the client disconnects, its generations are cancelled; every request's record is finished once.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lifecycle.inference.generation import Event
from lifecycle.serving.answers import AnswerForm
from lifecycle.serving.choices import Choices, completions
from lifecycle.serving.errors import RequestError
from lifecycle.serving.record import Recorder

CLIENT_GONE = 499  # nginx's number for a client that closed the connection; only records show it


async def complete_answer(request: Request, choices: Choices, form: AnswerForm, recorder: Recorder) -> Response:
    """The answer in one piece; stops when the client disconnects."""
    task = asyncio.ensure_future(_collect(choices, recorder))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(CLIENT_GONE, "the client closed the connection")
        events = task.result()
    finally:
        choices.cancel()
        task.cancel()
        gone.cancel()
    form.usage.completion_tokens = recorder.record.completion_tokens
    body = form.complete(completions(events, len(choices.generations)))
    recorder.finish(200)
    return JSONResponse(body)


async def _collect(choices: Choices, recorder: Recorder) -> list[tuple[int, Event]]:
    events: list[tuple[int, Event]] = []
    async for index, event in choices.events():
        recorder.see(index, event)
        events.append((index, event))
    return events


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events of a request's choices; frees their slots however it ends."""

    def __init__(self, choices: Choices, form: AnswerForm, recorder: Recorder) -> None:
        self._choices, self._form, self._recorder = choices, form, recorder
        self._chunks = self._events()
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._chunks, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; if the client leaves, cancels what is left of the request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._choices.cancel()
            self._recorder.finish(CLIENT_GONE)  # no effect after a regular end
            await self._chunks.aclose()

    async def _events(self) -> AsyncGenerator[str]:
        form, recorder = self._form, self._recorder
        try:
            for index in range(len(self._choices.generations)):
                if (opening := form.opening(index)) is not None:
                    yield _sse(opening)
            async for index, event in self._choices.events():
                recorder.see(index, event)
                form.usage.completion_tokens = recorder.record.completion_tokens
                if (chunk := form.chunk(index, event)) is not None:
                    yield _sse(chunk)
            if form.wants_usage:
                yield _sse(form.closing())
            recorder.finish(200)
            yield "data: [DONE]\n\n"
        except RequestError as error:
            recorder.finish(error.status)
            yield _sse(error.body)


def _sse(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
