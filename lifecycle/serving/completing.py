"""Handlers of the routes that continue a text or answer a conversation."""

import json
from collections.abc import Sequence
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from lifecycle.serving.answers import AnswerForm, Echo
from lifecycle.serving.choices import Choices, Served, require_capacity, submit
from lifecycle.serving.delivery import EventStream, chunks, complete_answer
from lifecycle.serving.desk import Desk
from lifecycle.serving.prompts import chat_prompt, require_ids, text_prompts
from lifecycle.serving.record import Recorder
from lifecycle.serving.schemas import ChatRequest, CompletionRequest
from lifecycle.text.interface import Tokenizer


class Completing:
    """`/v1/completions` and `/v1/chat/completions`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def complete(self, request: Request) -> Response:
        """A text completion."""

        async def work(ask: CompletionRequest, recorder: Recorder) -> Response:
            served = self._desk.serve(ask, recorder)
            model = served.engine.model
            require_capacity(served.engine, len(ask.prompts) * (ask.n or 1))
            prompts = await self._desk.in_thread(text_prompts, ask.prompts, model, served.engine.max_seq_len)
            recorder.record.prompt = await self._desk.in_thread(_prompt_text, ask, model.tokenizer)
            form = _form("text", ask, served, ask.logprobs is not None)
            return await self._answer(request, ask, served, prompts, form, recorder)

        return await self._desk.recorded(request, CompletionRequest, work)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""

        async def work(ask: ChatRequest, recorder: Recorder) -> Response:
            served = self._desk.serve(ask, recorder)
            messages, engine = [message.plain for message in ask.messages], served.engine
            require_capacity(engine, ask.n or 1)
            prompts = [await self._desk.in_thread(chat_prompt, messages, engine.model, engine.max_seq_len)]
            recorder.record.prompt = json.dumps(messages, ensure_ascii=False)
            form = _form("chat", ask, served, bool(ask.logprobs))
            return await self._answer(request, ask, served, prompts, form, recorder)

        return await self._desk.recorded(request, ChatRequest, work)

    async def _answer(
        self,
        request: Request,
        ask: ChatRequest | CompletionRequest,
        served: Served,
        prompts: Sequence[Sequence[int]],
        form: AnswerForm,
        recorder: Recorder,
    ) -> Response:
        model, count = served.engine.model, ask.n or 1
        require_ids([int(token) for token in ask.logit_bias or ()], model, "logit_bias")
        work = [(prompt, ask.sampling(model.defaults, i)) for prompt in prompts for i in range(count)]
        form.usage.prompt_tokens = sum(map(len, prompts))
        choices = submit(served.engine, work)
        if isinstance(ask, CompletionRequest) and ask.echo:
            form.echoes = _echoes(ask, choices, count, model.tokenizer)
        recorder.begin(form.id, choices.generations, form.usage.prompt_tokens)
        if ask.stream:
            return EventStream(chunks(choices, form, recorder), choices, recorder)
        return await complete_answer(request, choices, form, recorder)


def _prompt_text(ask: CompletionRequest, tokenizer: Tokenizer) -> str:
    return "\n".join(p if isinstance(p, str) else tokenizer.decode(p) for p in ask.prompts)


def _echoes(ask: CompletionRequest, choices: Choices, count: int, tokenizer: Tokenizer) -> dict[int, Echo]:
    """Each choice's prompt, without what begins every context of the model."""
    echoes: dict[int, Echo] = {}
    for index, generation in enumerate(choices.generations):
        prompt, ids = ask.prompts[index // count], generation.prompt
        if isinstance(prompt, str):
            echoes[index] = Echo(prompt, ids[1:] if tokenizer.adds_bos or not prompt else ids, generation)
        else:
            echoes[index] = Echo(tokenizer.decode(ids), ids, generation)
    return echoes


def _form(
    kind: Literal["chat", "text"], ask: ChatRequest | CompletionRequest, served: Served, has_logprobs: bool
) -> AnswerForm:
    model = served.engine.model
    return AnswerForm(
        kind, ask.model, served.version, model.tokenizer, model.stop_ids, has_logprobs, wants_usage=ask.wants_usage
    )
