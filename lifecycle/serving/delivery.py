"""Delivery of an answer: in one piece, or as server-sent events.

What must hold: when the client disconnects, or the time is over, its generations are cancelled; every request's record
is finished once.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lifecycle.inference.generation import Completion, Event
from lifecycle.serving.answers import AnswerForm
from lifecycle.serving.choices import Choices, best, completions
from lifecycle.serving.errors import CLIENT_GONE, RequestError
from lifecycle.serving.record import Recorder

STALLED_S = 10.0  # how much longer than its time a stream may take whose client does not read it


async def complete_answer(
    request: Request, choices: Choices, form: AnswerForm, recorder: Recorder, made: int, wanted: int
) -> Response:
    """The answer in one piece, with the best `wanted` of each `made` choices; stops when the client disconnects."""
    completed = await collected(request, choices, recorder)
    form.usage.completion_tokens = recorder.record.completion_tokens
    kept = best(completed, made, wanted)
    recorder.show(completed[kept[0]])
    body = form.complete(completed, kept)
    recorder.finish(200)
    return JSONResponse(body)


async def collected(request: Request, choices: Choices, recorder: Recorder) -> list[Completion]:
    """The complete output of each choice; raises `RequestError` if the client disconnects."""
    try:
        events = await unless_gone(request, _collect(choices, recorder))
    finally:
        choices.cancel()
    return completions(events, len(choices.generations))


async def unless_gone[T](request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects: then `RequestError` is raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(CLIENT_GONE, "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)  # it may fail at the moment at which it is cancelled


async def _collect(choices: Choices, recorder: Recorder) -> list[tuple[int, Event]]:
    events: list[tuple[int, Event]] = []
    async for index, event in in_time(choices.events(), recorder):
        recorder.see(index, event)
        events.append((index, event))
    return events


async def in_time[T](values: AsyncIterator[T], recorder: Recorder) -> AsyncGenerator[T]:
    """The values, as long as the request's time lasts; then `RequestError` is raised."""
    while True:
        try:
            async with asyncio.timeout_at(recorder.deadline):
                value = await anext(values)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise too_late(recorder) from None
        yield value


def too_late(recorder: Recorder) -> RequestError:
    """The error for a request whose time is over; OpenAI's clients do not send it again."""
    message = f"the answer was not whole after {recorder.max_request_s:g} seconds, the most that this server takes"
    return RequestError(504, message, code="timeout", headers={"x-should-retry": "false"})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events about a request's choices; frees their slots however it ends."""

    def __init__(self, pieces: AsyncGenerator[str], choices: Choices, recorder: Recorder) -> None:
        self._pieces, self._choices, self._recorder = pieces, choices, recorder
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; if the client leaves, cancels what is left of the request."""
        try:
            with suppress(TimeoutError):  # uvicorn closes the connection of an answer that is not whole
                async with asyncio.timeout_at(self._recorder.deadline + STALLED_S):
                    await super().__call__(scope, receive, send)
        finally:
            self._choices.cancel()
            self._recorder.finish(CLIENT_GONE)  # no effect after a regular end
            await self._pieces.aclose()


async def chunks(choices: Choices, form: AnswerForm, recorder: Recorder) -> AsyncGenerator[str]:
    """The stream of a text completion or a chat."""
    try:
        for index in range(len(choices.generations)):
            if (opening := form.opening(index)) is not None:
                yield sse(opening)
        async for index, event in in_time(choices.events(), recorder):
            recorder.see(index, event)
            form.usage.completion_tokens = recorder.record.completion_tokens
            if (chunk := form.chunk(index, event)) is not None:
                yield sse(chunk)
        if form.wants_usage:
            yield sse(form.closing())
        recorder.finish(200)
        yield "data: [DONE]\n\n"
    except RequestError as error:
        recorder.finish(error.status)
        yield sse(error.body)


def sse(data: Mapping[str, Any], event: str | None = None) -> str:
    """One server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"
