"""The API's routes: what each takes and gives. The server and its OpenAPI document are both made from this table."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lifecycle.serving.adapters import Adapting, LoadAdapterRequest, UnloadAdapterRequest, Unloaded
from lifecycle.serving.answer_schemas import ChatAnswer, CompletionAnswer, ModelCard, ModelList, Tokenized, TokenText
from lifecycle.serving.chat_schemas import ChatRequest, TokenizeRequest
from lifecycle.serving.completing import Completing
from lifecycle.serving.desk import Desk
from lifecycle.serving.looking_up import LookingUp
from lifecycle.serving.parsing import Body
from lifecycle.serving.responding import Responding
from lifecycle.serving.response_answers import ResponseAnswer
from lifecycle.serving.response_schemas import ResponseRequest
from lifecycle.serving.schemas import CompletionRequest, DetokenizeRequest
from lifecycle.serving.vector_schemas import (
    EmbeddingAnswer,
    EmbeddingRequest,
    RerankAnswer,
    RerankRequest,
    ScoreAnswer,
    ScoreRequest,
)
from lifecycle.serving.vectors import Vectors

type Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """A route of the API; with `asks` it takes a body. `streams`: with `stream: true` it sends events."""

    path: str
    handler: Handler
    answers: type[BaseModel]
    asks: type[Body] | None = None
    streams: bool = False

    @property
    def route(self) -> Route:
        """As the application has it."""
        return Route(self.path, self.handler, methods=["GET" if self.asks is None else "POST"])


def endpoints(desk: Desk, adapting: Adapting | None = None) -> list[Endpoint]:
    """All routes of the API; those that change which models are served only with `adapting`."""
    looking_up, completing, responding, vectors = LookingUp(desk), Completing(desk), Responding(desk), Vectors(desk)
    changing = (
        []
        if adapting is None
        else [
            Endpoint("/v1/load_lora_adapter", adapting.load, ModelCard, LoadAdapterRequest),
            Endpoint("/v1/unload_lora_adapter", adapting.unload, Unloaded, UnloadAdapterRequest),
        ]
    )
    return [
        *changing,
        Endpoint("/v1/models", looking_up.list_models, ModelList),
        Endpoint("/v1/models/{name:path}", looking_up.show_model, ModelCard),
        Endpoint("/v1/completions", completing.complete, CompletionAnswer, CompletionRequest, streams=True),
        Endpoint("/v1/chat/completions", completing.chat, ChatAnswer, ChatRequest, streams=True),
        Endpoint("/v1/responses", responding.respond, ResponseAnswer, ResponseRequest, streams=True),
        Endpoint("/v1/embeddings", vectors.embed, EmbeddingAnswer, EmbeddingRequest),
        Endpoint("/v1/score", vectors.score, ScoreAnswer, ScoreRequest),
        Endpoint("/v1/rerank", vectors.rerank, RerankAnswer, RerankRequest),
        Endpoint("/tokenize", looking_up.tokenize, Tokenized, TokenizeRequest),
        Endpoint("/detokenize", looking_up.detokenize, TokenText, DetokenizeRequest),
    ]
