"""The desk: what is common to all routes of the API, from a request's arrival to its answer.

It asks for a key, looks up the model, keeps texts from blocking the event loop, and records each request once. What
must hold: models are looked up by name at each request, so a changed mapping moves a name to another version while
running requests finish on the old one; a rejected request is recorded too.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from lifecycle.serving.body import read_body
from lifecycle.serving.choices import Served, busy
from lifecycle.serving.errors import RequestError
from lifecycle.serving.keys import Account, KeyRing
from lifecycle.serving.parsing import Body, parse
from lifecycle.serving.record import Recorder, RequestObserver

MAX_ARRIVING = 256  # requests whose answer has not begun, beside those that the engines hold: 1 GB of bodies at most


class Asked(Protocol):
    """The part of a request that says which model, and for whom."""

    @property
    def model(self) -> str:
        """The name of a model."""
        ...

    @property
    def sender(self) -> str | None:
        """The client's label for the user on whose behalf it asks."""
        ...


class Desk:
    """Serves the handlers of all routes."""

    def __init__(
        self,
        models: Mapping[str, Served],
        keys: KeyRing,
        observers: tuple[RequestObserver, ...],
        max_request_s: float,
    ) -> None:
        self.models = models
        self._keys = keys
        self._observers = observers
        self._max_request_s = max_request_s
        self._num_arriving = 0
        self._tokenizing = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tokenize")

    def admit(self, request: Request) -> Account:
        """The account of the request's key; a POST counts for its limits. Raises `RequestError`, also for a query."""
        account = self._keys.account(request.headers.get("authorization", ""))
        if name := next(iter(request.query_params), None):
            raise RequestError(400, f"unrecognized query parameter: {name}", name, "unknown_parameter")
        if request.method == "POST":
            account.begin_request()
        return account

    def names(self, account: Account) -> list[str]:
        """The names of models that an account may use."""
        return [name for name in self.models if account.may_use(name)]

    def model(self, name: str, account: Account) -> Served:
        """The model behind a name; raises `RequestError` for one that is not there or not the account's to use."""
        if not account.may_use(name):
            message = f"this key may not use the model {name!r}; it may use: {', '.join(self.names(account))}"
            raise RequestError(403, message, "model", "model_not_allowed")
        served = self.models.get(name)
        if served is None and name:  # the hash that the list of models shows is a name too; a model in memory has none
            served = next((served for served in self.models.values() if served.version == name), None)
        if served is None:
            message = f"the model {name!r} does not exist; served here: {', '.join(self.names(account))}"
            raise RequestError(404, message, "model", "model_not_found")
        return served

    def serve(self, ask: Asked, recorder: Recorder) -> Served:
        """The model that a recorded request asks for."""
        served = self.model(ask.model, recorder.account)
        recorder.record.model, recorder.record.version, recorder.record.user = ask.model, served.version, ask.sender
        return served

    async def in_thread[**P, T](self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a function in a thread of its own kind: long texts hold up no other work."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, partial(function, *args, **kwargs))

    async def recorded[A: Body](
        self, request: Request, kind: type[A], work: Callable[[A, Recorder], Awaitable[Response]]
    ) -> Response:
        """The answer of `work` to a body of this kind; a rejection is recorded and answered in OpenAI's form."""
        recorder = Recorder(request.url.path, self._observers, self._max_request_s)
        self._num_arriving += 1
        try:
            engines = {served.engine for served in self.models.values()}
            if self._num_arriving > MAX_ARRIVING + sum(engine.max_requests for engine in engines):
                raise busy(f"{self._num_arriving} requests are being read")
            recorder.admit(self.admit(request))
            response = await work(parse(kind, await read_body(request)), recorder)
        except RequestError as error:
            recorder.finish(error.status)
            response = error.response()
        except BaseException:
            recorder.finish(500)
            raise
        finally:
            self._num_arriving -= 1
        response.headers.update(recorder.account.headers())
        return response
