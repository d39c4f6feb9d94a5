"""The HTTP application: OpenAI's routes, metrics, health and the chat page.

Models are looked up by name at each request, so a changed mapping moves a name to another version while running
requests finish on the old one. What must hold: an API key is never written anywhere, and each request is recorded once,
rejected ones too.
"""

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lifecycle.core.config import ConfigError
from lifecycle.serving.answers import AnswerForm, Echo, TextForm
from lifecycle.serving.body import read_body
from lifecycle.serving.chat_answers import ChatForm
from lifecycle.serving.chat_schemas import ChatRequest, TokenizeRequest
from lifecycle.serving.chats import Abilities, prepare_chat, structured_changes, token_ids
from lifecycle.serving.choices import Choices, Served, require_capacity, submit
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.delivery import CLIENT_GONE, EventStream, complete_answer
from lifecycle.serving.errors import RequestError
from lifecycle.serving.metrics import Metrics
from lifecycle.serving.pages import page_routes
from lifecycle.serving.prompts import require_ids, text_of, text_prompts
from lifecycle.serving.record import Recorder, RequestObserver
from lifecycle.serving.schemas import CompletionRequest, DetokenizeRequest, parse
from lifecycle.text.interface import Tokenizer


def create_app(
    models: Mapping[str, Served], config: ServeConfig, observers: Sequence[RequestObserver] = ()
) -> Starlette:
    """The application over `models` by name; each finished request is passed to `observers`.

    Raises `ConfigError` if `config.api_key_env` names a variable that is not set.
    """
    metrics = Metrics(models)
    api = Api(models, _api_key(config), (metrics.observe, *observers))

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        *page_routes(),
        Route("/health", api.health),
        Route("/metrics", show_metrics),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.show_model),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
    ]
    handlers = {HTTPException: _http_error, RequestError: _request_error, Exception: _internal_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.stopping = asyncio.Event()  # set by the server when it stops
    return app


def _api_key(config: ServeConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(f"serve.api_key_env: the environment variable {config.api_key_env} is not set or empty")
    return key


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return RequestError(error.status_code, error.detail, headers=dict(error.headers or {})).response()


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _internal_error(_: Request, error: Exception) -> Response:
    """The client's answer; the exception is raised again, and its traceback goes to the log."""
    return RequestError(500, f"internal error ({type(error).__name__})", code="internal_error").response()


class Api:
    """Handlers of the `/v1` routes."""

    def __init__(
        self, models: Mapping[str, Served], api_key: str | None, observers: tuple[RequestObserver, ...]
    ) -> None:
        self._models = models
        self._key = api_key
        self._observers = observers
        self._tokenizing = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tokenize")

    async def health(self, _: Request) -> Response:
        """200 while all engines answer, 503 with the names of those that do not."""
        broken = [name for name, served in self._models.items() if not served.engine.is_alive]
        if broken:
            return JSONResponse({"status": "broken", "models": broken}, 503)
        return JSONResponse({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        """The models that are served, by name."""
        self._admit(request)
        return JSONResponse({"object": "list", "data": [_card(name, s) for name, s in self._models.items()]})

    async def show_model(self, request: Request) -> Response:
        """One served model."""
        self._admit(request)
        name = request.path_params["name"]
        return JSONResponse(_card(name, self._model(name)))

    async def complete(self, request: Request) -> Response:
        """A text completion."""

        async def work(recorder: Recorder) -> Response:
            ask = parse(CompletionRequest, await read_body(request))
            served = self._serve(ask, recorder)
            model = served.engine.model
            require_capacity(served.engine, len(ask.prompts) * (ask.n or 1))
            prompts = await self._tokenize(text_prompts, ask, model, served.engine.max_seq_len)
            recorder.record.prompt = await self._tokenize(_prompt_text, ask, model.tokenizer)
            changes = await self._tokenize(structured_changes, ask.structured_outputs, served.engine)
            form = TextForm(**_form(ask, served, ask.logprobs is not None))
            return await self._answer(request, ask, served, prompts, form, recorder, changes)

        return await self._recorded(request, work)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""

        async def work(recorder: Recorder) -> Response:
            ask = parse(ChatRequest, await read_body(request))
            served = self._serve(ask, recorder)
            require_capacity(served.engine, ask.n or 1)
            chat = await self._tokenize(prepare_chat, ask, served.engine)
            recorder.record.prompt = json.dumps(chat.messages, ensure_ascii=False)
            settings, id_length = _form(ask, served, bool(ask.logprobs)), chat.abilities.call_id_length
            form = ChatForm(**settings, parser=chat.parser, call_id_length=id_length)
            return await self._answer(request, ask, served, [chat.prompt], form, recorder, chat.changes)

        return await self._recorded(request, work)

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or a conversation."""
        self._admit(request)
        ask = parse(TokenizeRequest, await read_body(request))
        engine = self._model(ask.model).engine
        ids = await self._tokenize(token_ids, ask, engine)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": engine.max_seq_len})

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        self._admit(request)
        ask = parse(DetokenizeRequest, await read_body(request))
        return JSONResponse({"prompt": await self._tokenize(text_of, ask, self._model(ask.model).engine.model)})

    async def _tokenize[**P, T](self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function in a thread of its own kind: long texts hold up no other work."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, partial(function, *args, **kwargs))

    async def _recorded(self, request: Request, work: Callable[[Recorder], Awaitable[Response]]) -> Response:
        """Runs a handler's work; a rejection is recorded and answered in OpenAI's form."""
        recorder = Recorder(request.url.path, self._observers)
        try:
            self._admit(request)
            return await work(recorder)
        except RequestError as error:
            recorder.finish(error.status)
            return error.response()
        except ClientDisconnect:  # in the middle of its upload
            recorder.finish(CLIENT_GONE)
            return Response(status_code=CLIENT_GONE)
        except BaseException:
            recorder.finish(500)
            raise

    async def _answer(
        self,
        request: Request,
        ask: ChatRequest | CompletionRequest,
        served: Served,
        prompts: Sequence[Sequence[int]],
        form: AnswerForm,
        recorder: Recorder,
        changes: Mapping[str, Any],
    ) -> Response:
        """Submits the choices, with these changes of their sampling settings, and answers in the form."""
        model, count = served.engine.model, ask.n or 1
        require_ids([int(token) for token in ask.logit_bias or ()], model, "logit_bias")
        each = [ask.sampling(model.defaults, i).model_copy(update=changes) for i in range(count)]
        work = [(prompt, params) for prompt in prompts for params in each]
        form.usage.prompt_tokens = sum(map(len, prompts))
        choices = submit(served.engine, work)
        if isinstance(ask, CompletionRequest) and isinstance(form, TextForm) and ask.echo:
            form.echoes = _echoes(ask, choices, count, model.tokenizer)
        recorder.record.id = form.id
        recorder.record.prompt_tokens = form.usage.prompt_tokens
        recorder.record.generation_ids = tuple(generation.id for generation in choices.generations)
        if ask.stream:
            return EventStream(choices, form, recorder)
        return await complete_answer(request, choices, form, recorder)

    def _admit(self, request: Request) -> None:
        self._authorise(request)
        if name := next(iter(request.query_params), None):
            raise RequestError(400, f"unrecognized query parameter: {name}", name, "unknown_parameter")

    def _authorise(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
            raise RequestError(401, "incorrect API key; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")

    def _model(self, name: str) -> Served:
        served = self._models.get(name)
        if served is None:  # the hash that the list of models shows is a name too
            served = next((served for served in self._models.values() if served.version == name), None)
        if served is None:
            known = ", ".join(self._models)
            message = f"the model {name!r} does not exist; served here: {known}"
            raise RequestError(404, message, "model", "model_not_found")
        return served

    def _serve(self, ask: ChatRequest | CompletionRequest, recorder: Recorder) -> Served:
        served = self._model(ask.model)
        recorder.record.model, recorder.record.version, recorder.record.user = ask.model, served.version, ask.sender
        return served


def _card(name: str, served: Served) -> dict[str, Any]:
    engine = served.engine
    card = {"id": name, "object": "model", "created": served.created, "owned_by": "lifecycle"}
    return {**card, "version": served.version, "max_model_len": engine.max_seq_len, **Abilities.of(engine.model).card}


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
