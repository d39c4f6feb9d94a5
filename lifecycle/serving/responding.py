"""Handler of OpenAI's `/v1/responses`: a chat, with another shape of its answer and other events of its stream.

What must hold: the events' deltas add up to the text of the last event's answer, which is the one without a stream. A
model's thoughts are in neither.
"""

import itertools
import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from lifecycle.inference.generation import Completion, Generation, collect
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.chats import prepare_chat
from lifecycle.serving.choices import Choices, require_capacity, submit
from lifecycle.serving.delivery import EventStream, collected, in_time, sse
from lifecycle.serving.desk import Desk
from lifecycle.serving.errors import RequestError
from lifecycle.serving.record import Recorder
from lifecycle.serving.response_schemas import (
    Content,
    IncompleteDetails,
    InputDetails,
    OutputMessage,
    ResponseAnswer,
    ResponseRequest,
    ResponseUsage,
    Status,
)
from lifecycle.text.answer import AnswerParser
from lifecycle.text.harmony import HarmonyParser


class Responding:
    """`/v1/responses`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def respond(self, request: Request) -> Response:
        """An answer to a conversation."""

        async def work(ask: ResponseRequest, recorder: Recorder) -> Response:
            engine = self._desk.serve(ask, recorder).engine
            require_capacity(engine, 1)
            chat = await self._desk.in_thread(prepare_chat, ask.chat, engine)
            recorder.record.prompt = json.dumps(chat.messages, ensure_ascii=False)
            params = ask.chat.sampling(engine.model.defaults, 0).model_copy(update=chat.changes)
            choices = submit(engine, [(chat.prompt, params)])
            form = ResponseForm(ask, params, int(recorder.record.time), choices.generations[0])
            recorder.begin(form.id, choices.generations, len(chat.prompt))
            if ask.stream:
                return EventStream(_events(choices, form, chat.parser(), recorder), choices, recorder)
            (completion,) = await collected(request, choices, recorder)
            recorder.finish(200)
            said = replace(completion, text=_said(chat.parser(), completion.text, is_last=True))
            return Response(form.answer(said).model_dump_json(), media_type="application/json")

        return await self._desk.recorded(request, ResponseRequest, work)


class ResponseForm:
    """Shapes one request's answer."""

    def __init__(self, ask: ResponseRequest, params: SamplingParams, created: int, generation: Generation) -> None:
        name = secrets.token_hex(12)
        self.id, self.message_id = f"resp_{name}", f"msg_{name}"
        self._ask, self._params, self._created, self._generation = ask, params, created, generation

    def answer(self, completion: Completion | None = None) -> ResponseAnswer:
        """The answer; without a completion, before there is any."""
        is_cut = completion is not None and completion.finish_reason == "length"
        return ResponseAnswer(
            id=self.id,
            created_at=self._created,
            status=_status(completion),
            incomplete_details=IncompleteDetails() if is_cut else None,
            instructions=self._ask.instructions,
            max_output_tokens=self._ask.max_output_tokens,
            model=self._ask.model,
            output=[] if completion is None else [self.message(completion)],
            temperature=self._params.temperature,
            top_p=self._params.top_p,
            usage=None if completion is None else self._usage(len(completion.tokens)),
            user=self._ask.user,
        )

    def message(self, completion: Completion | None = None) -> OutputMessage:
        """The answer's message; without a completion it is empty."""
        content = [] if completion is None else [Content(text=completion.text)]
        return OutputMessage(id=self.message_id, status=_status(completion), content=content)

    def _usage(self, made: int) -> ResponseUsage:
        asked, details = len(self._generation.prompt), InputDetails(cached_tokens=self._generation.cached_tokens)
        return ResponseUsage(
            input_tokens=asked, input_tokens_details=details, output_tokens=made, total_tokens=asked + made
        )


def _status(completion: Completion | None) -> Status:
    if completion is None:
        return "in_progress"
    return "incomplete" if completion.finish_reason == "length" else "completed"


def _said(parser: AnswerParser | HarmonyParser, text: str, is_last: bool) -> str:
    """What an answer says with a piece of its text."""
    parts = parser.feed(text) + (parser.flush() if is_last else [])
    return "".join(part.text for part in parts if part.kind == "text")


async def _events(
    choices: Choices, form: ResponseForm, parser: AnswerParser | HarmonyParser, recorder: Recorder
) -> AsyncGenerator[str]:
    numbers, events = itertools.count(), []
    try:
        for name, fields in _opening(form):
            yield _event(name, numbers, **fields)
        async for index, event in in_time(choices.events(), recorder):
            recorder.see(index, event)
            said = _said(parser, event.text, is_last=event.finish_reason is not None)
            events.append(replace(event, text=said))
            if said:
                yield _event("response.output_text.delta", numbers, **_part(form), delta=said, logprobs=[])
        recorder.finish(200)
        for name, fields in _closing(form, collect(events)):
            yield _event(name, numbers, **fields)
    except RequestError as error:
        recorder.finish(error.status)
        about = {name: error.body["error"][name] for name in ("code", "message", "param")}
        yield _event("error", numbers, **about)


def _opening(form: ResponseForm) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": form.answer()}
    yield "response.in_progress", {"response": form.answer()}
    yield "response.output_item.added", {"output_index": 0, "item": form.message()}
    yield "response.content_part.added", {**_part(form), "part": Content(text="")}


def _closing(form: ResponseForm, completion: Completion) -> Iterator[tuple[str, dict[str, Any]]]:
    answer, message = form.answer(completion), form.message(completion)
    yield "response.output_text.done", {**_part(form), "text": completion.text, "logprobs": []}
    yield "response.content_part.done", {**_part(form), "part": message.content[0]}
    yield "response.output_item.done", {"output_index": 0, "item": message}
    yield f"response.{answer.status}", {"response": answer}


def _part(form: ResponseForm) -> dict[str, Any]:
    """Where the answer's only text is."""
    return {"item_id": form.message_id, "output_index": 0, "content_index": 0}


def _event(name: str, numbers: Iterator[int], **fields: Any) -> str:
    plain = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in fields.items()}
    return sse({"type": name, "sequence_number": next(numbers), **plain}, event=name)
