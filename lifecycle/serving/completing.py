"""Handlers of the routes that continue a text or answer a conversation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lifecycle.serving.answers import AnswerForm, Echo, TextForm
from lifecycle.serving.chat_answers import ChatForm
from lifecycle.serving.chat_schemas import ChatRequest
from lifecycle.serving.chats import prepare_chat, structured_changes
from lifecycle.serving.choices import Choices, Served, require_capacity, submit
from lifecycle.serving.delivery import EventStream, chunks, complete_answer
from lifecycle.serving.desk import Desk
from lifecycle.serving.prompts import require_ids, text_prompts
from lifecycle.serving.record import Recorder
from lifecycle.serving.schemas import CompletionRequest
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
            require_capacity(served.engine, len(ask.prompts) * ask.num_made)
            prompts = await self._desk.in_thread(text_prompts, ask.prompts, model, served.engine.max_seq_len)
            recorder.record.prompt = await self._desk.in_thread(_prompt_text, ask, model.tokenizer)
            changes = await self._desk.in_thread(structured_changes, ask.structured_outputs, served.engine)
            form = TextForm(**_form(ask, served, ask.logprobs is not None))
            return await self._answer(request, ask, served, prompts, form, recorder, changes)

        return await self._desk.recorded(request, CompletionRequest, work)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""

        async def work(ask: ChatRequest, recorder: Recorder) -> Response:
            served = self._desk.serve(ask, recorder)
            require_capacity(served.engine, ask.num_made)
            chat = await self._desk.in_thread(prepare_chat, ask, served.engine)
            recorder.record.prompt = json.dumps(chat.messages, ensure_ascii=False)
            settings, id_length = _form(ask, served, bool(ask.logprobs)), chat.abilities.call_id_length
            form = ChatForm(**settings, parser=chat.parser, call_id_length=id_length)
            given = form, recorder, chat.changes, chat.prediction
            return await self._answer(request, ask, served, [chat.prompt], *given)

        return await self._desk.recorded(request, ChatRequest, work)

    async def _answer(
        self,
        request: Request,
        ask: ChatRequest | CompletionRequest,
        served: Served,
        prompts: Sequence[Sequence[int]],
        form: AnswerForm,
        recorder: Recorder,
        changes: Mapping[str, Any],
        prediction: Sequence[int] = (),
    ) -> Response:
        """Submits the choices, with these changes of their sampling settings, and answers in the form."""
        model, count = served.engine.model, ask.num_made
        require_ids([int(token) for token in ask.logit_bias or ()], model, "logit_bias")
        each = [ask.sampling(model.defaults, i).model_copy(update=changes) for i in range(count)]
        work = [(prompt, params) for prompt in prompts for params in each]
        form.usage.prompt_tokens = sum(map(len, prompts))
        choices = submit(served, work, prediction)
        form.usage.first_choices = choices.generations[::count]
        form.usage.predicted_choices = choices.generations if prediction else ()
        if isinstance(ask, CompletionRequest) and isinstance(form, TextForm) and ask.echo:
            form.echoes = _echoes(ask, choices, count, model.tokenizer)
        recorder.begin(form.id, choices.generations, form.usage.prompt_tokens)
        if ask.stream:
            return EventStream(chunks(choices, form, recorder), choices, recorder)
        return await complete_answer(request, choices, form, recorder, count, ask.n or 1)


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


def _form(ask: ChatRequest | CompletionRequest, served: Served, has_logprobs: bool) -> dict[str, Any]:
    """What answers of both forms have."""
    model = served.engine.model
    named = {"model": ask.model, "version": served.version, "tokenizer": model.tokenizer, "stop_ids": model.stop_ids}
    return {**named, "has_logprobs": has_logprobs, "wants_usage": ask.wants_usage}
