"""Handlers of the routes that compute nothing: the list of models, and texts as token ids and back."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lifecycle.serving.body import read_body
from lifecycle.serving.chat_schemas import TokenizeRequest
from lifecycle.serving.chats import token_ids
from lifecycle.serving.choices import Served
from lifecycle.serving.desk import Desk
from lifecycle.serving.parsing import parse
from lifecycle.serving.prompts import text_of
from lifecycle.serving.schemas import DetokenizeRequest
from lifecycle.text.abilities import Abilities


class LookingUp:
    """`/v1/models`, `/tokenize` and `/detokenize`; requests for them are not recorded."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list_models(self, request: Request) -> Response:
        """The models that are served, by name."""
        names = self._desk.names(self._desk.admit(request))
        cards = [card(name, self._desk.models[name], self._desk.models) for name in names]
        return JSONResponse({"object": "list", "data": cards})

    async def show_model(self, request: Request) -> Response:
        """One served model."""
        account, name = self._desk.admit(request), request.path_params["name"]
        return JSONResponse(card(name, self._desk.model(name, account), self._desk.models))

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or a conversation."""
        account = self._desk.admit(request)
        ask = parse(TokenizeRequest, await read_body(request))
        engine = self._desk.model(ask.model, account).engine
        ids = await self._desk.in_thread(token_ids, ask, engine)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": engine.max_seq_len})

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        account = self._desk.admit(request)
        ask = parse(DetokenizeRequest, await read_body(request))
        model = self._desk.model(ask.model, account).engine.model
        return JSONResponse({"prompt": await self._desk.in_thread(text_of, ask, model)})


def card(name: str, served: Served, models: Mapping[str, Served]) -> dict[str, object]:
    """A model as the list of models shows it; the parent of an adapter is its model's first name."""
    of_same_engine = (other for other, own in models.items() if own.engine is served.engine and own.adapter is None)
    parent = None if served.adapter is None else next(of_same_engine, None)
    about = {"id": name, "object": "model", "created": served.created, "owned_by": "lifecycle", "parent": parent}
    shown = {"version": served.version, "max_model_len": served.engine.max_seq_len}
    return {**about, **shown, **Abilities.of(served.engine.model.template.source).card}
