"""Handler of OpenAI's `/v1/responses`: a chat, with another shape of its answer and other events of its stream.

What must hold: the last event of a stream has the answer that there is without a stream.
"""

import itertools
import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Generation
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.chats import Chat, prepare_chat
from lifecycle.serving.choices import Choices, require_capacity, submit
from lifecycle.serving.delivery import EventStream, collected, in_time, sse
from lifecycle.serving.desk import Desk
from lifecycle.serving.errors import RequestError
from lifecycle.serving.record import Recorder
from lifecycle.serving.response_answers import (
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    OutputItems,
    ResponseAnswer,
    ResponseUsage,
)
from lifecycle.serving.response_schemas import FIELDS, ResponseRequest, Status
from lifecycle.text.tokenizer import Tokenizer


class Responding:
    """`/v1/responses`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def respond(self, request: Request) -> Response:
        """An answer to a conversation."""

        async def work(ask: ResponseRequest, recorder: Recorder) -> Response:
            served = self._desk.serve(ask, recorder)
            engine = served.engine
            require_capacity(engine, 1)
            chat, own = await self._desk.in_thread(_prepared, ask, engine)
            recorder.record.prompt = json.dumps(chat.messages, ensure_ascii=False)
            choices = submit(served, [(chat.prompt, own)])
            answering = _Answering(ask, chat, own, choices, recorder, engine.model.tokenizer)
            recorder.begin(answering.id, choices.generations, len(chat.prompt))
            if ask.stream:
                return EventStream(answering.events(), choices, recorder)
            (completion,) = await collected(request, choices, recorder)
            recorder.finish(200)
            parser = chat.parser()
            parts = [*parser.feed(completion.text), *parser.flush()]
            made = itertools.chain(answering.output.add(parts), answering.finish(completion.finish_reason))
            answer = [fields for _, fields in made][-1]["response"]
            return Response(answer.model_dump_json(), media_type="application/json")

        return await self._desk.recorded(request, ResponseRequest, work)


def _prepared(ask: ResponseRequest, engine: Engine) -> tuple[Chat, SamplingParams]:
    """The chat and its sampling settings; raises `RequestError` that names the field as it is called here."""
    try:
        asked = ask.chat
        chat = prepare_chat(asked, engine)
    except RequestError as error:
        if error.param in FIELDS:
            own = FIELDS[error.param]
            message = own + error.message.removeprefix(error.param) if error.message.startswith(error.param) else None
            raise RequestError(error.status, message or error.message, own, error.code) from None
        raise
    return chat, asked.sampling(engine.model.defaults, 0).model_copy(update=chat.changes)


class _Answering:
    """Shapes one request's answer."""

    def __init__(
        self,
        ask: ResponseRequest,
        chat: Chat,
        params: SamplingParams,
        choices: Choices,
        recorder: Recorder,
        tokenizer: Tokenizer,
    ) -> None:
        self.id = f"resp_{secrets.token_hex(12)}"
        self.output = OutputItems(chat.abilities.call_id_length)
        self._ask, self._chat, self._params, self._tokenizer = ask, chat, params, tokenizer
        self._choices, self._recorder = choices, recorder

    async def events(self) -> AsyncGenerator[str]:
        """The stream."""
        numbers, parser = itertools.count(), self._chat.parser()
        try:
            for name in ("created", "in_progress"):
                yield _event(name, numbers, response=self._answer("in_progress"))
            async for index, event in in_time(self._choices.events(), self._recorder):
                self._recorder.see(index, event)
                parts = parser.feed(event.text) + (parser.flush() if event.finish_reason else [])
                for name, fields in self.output.add(parts):
                    yield _event(name, numbers, **fields)
                if event.finish_reason is not None:
                    self._recorder.finish(200)
                    for name, fields in self.finish(event.finish_reason):
                        yield _event(name, numbers, **fields)
        except RequestError as error:
            self._recorder.finish(error.status)
            about = {name: error.body["error"][name] for name in ("code", "message", "param")}
            yield sse({"type": "error", "sequence_number": next(numbers), **about}, event="error")

    def finish(self, reason: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of the end; the last one has the whole answer."""
        is_cut = reason == "length"
        yield from self.output.finish(is_cut)
        answer = self._answer("incomplete" if is_cut else "completed")
        yield answer.status, {"response": answer}

    def _answer(self, status: Status) -> ResponseAnswer:
        ask, params = self._ask, self._params
        text = (ask.text and ask.text.format and ask.text.format.model_dump(by_alias=True)) or {"type": "text"}
        choice = ask.tool_choice if isinstance(ask.tool_choice, str | None) else ask.tool_choice.model_dump()
        return ResponseAnswer(
            id=self.id,
            created_at=int(self._recorder.record.time),
            status=status,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=ask.instructions,
            max_output_tokens=ask.max_output_tokens,
            model=ask.model,
            output=[item.model_copy(deep=True) for item in self.output.items],
            parallel_tool_calls=ask.parallel_tool_calls is not False,
            reasoning={"effort": ask.reasoning and ask.reasoning.effort, "summary": None},
            temperature=params.temperature,
            text={"format": text},
            tool_choice=choice or "auto",
            tools=[tool.model_dump() for tool in ask.tools or ()],
            top_p=params.top_p,
            usage=None if status == "in_progress" else self._usage(self._choices.generations[0]),
            user=ask.user,
        )

    def _usage(self, generation: Generation) -> ResponseUsage:
        asked, made = len(generation.prompt), self._recorder.record.completion_tokens
        thoughts = self.output.text_of("reasoning")
        return ResponseUsage(
            input_tokens=asked,
            input_tokens_details=InputDetails(cached_tokens=generation.cached_tokens),
            output_tokens=made,
            output_tokens_details=OutputDetails(reasoning_tokens=len(self._tokenizer.encode(thoughts))),
            total_tokens=asked + made,
        )


def _event(name: str, numbers: Iterator[int], /, **fields: Any) -> str:
    plain = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in fields.items()}
    return sse({"type": f"response.{name}", "sequence_number": next(numbers), **plain}, event=f"response.{name}")
