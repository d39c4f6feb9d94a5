"""A finished request's record, for metrics and for the request log."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from lifecycle.inference.generation import Event


@dataclass
class FinishedRequest:
    """One HTTP request; times in seconds. `generation_ids` are the engine's, to which steps were charged."""

    route: str
    id: str = ""  # the answer's id; a rejected request has its own
    time: float = 0.0  # of arrival, since the epoch
    model: str = ""
    version: str = ""
    status: int = 200
    finish_reason: str | None = None  # of the first choice
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    first_token_s: float | None = None
    prompt: str = ""
    completion: str = ""  # of the first choice
    generation_ids: tuple[str, ...] = ()
    user: str | None = None  # the client's label for whom it asks


type RequestObserver = Callable[[FinishedRequest], None]


class Recorder:
    """Fills in a request's record while it runs; `finish` passes it on, once."""

    def __init__(self, route: str, observers: tuple[RequestObserver, ...]) -> None:
        self._began = time.perf_counter()
        self._observers = observers
        self.record = FinishedRequest(route, id=f"req-{secrets.token_hex(12)}", time=time.time())

    def see(self, index: int, event: Event) -> None:
        """Counts an event of choice `index`."""
        record = self.record
        record.completion_tokens += len(event.tokens)
        if record.first_token_s is None and event.tokens:
            record.first_token_s = time.perf_counter() - self._began
        if index == 0:
            record.completion += event.text
            record.finish_reason = event.finish_reason

    def finish(self, status: int) -> None:
        """Passes the record on with its status and latency; no effect after the first call."""
        self.record.status = status
        self.record.latency_s = time.perf_counter() - self._began
        observers, self._observers = self._observers, ()
        for observe in observers:
            observe(self.record)
