"""A request while it runs: its record, for metrics and for the request log, whose it is and how long it may take."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lifecycle.inference.generation import Completion, Event, Generation
from lifecycle.serving.keys import OPEN, Account


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
    key: str = ""  # the name of the key that it came with, "" where none is needed
    user: str | None = None  # the client's label for whom it asks


type RequestObserver = Callable[[FinishedRequest], None]


class Recorder:
    """Fills in a request's record while it runs; `finish` passes it on, once. Its tokens count for its `account`.

    `deadline` is the event loop's time by which the answer has to be whole.
    """

    def __init__(self, route: str, observers: tuple[RequestObserver, ...], max_request_s: float) -> None:
        self._began = time.perf_counter()
        self._observers, self._is_finished = observers, False
        self.record = FinishedRequest(route, id=f"req-{secrets.token_hex(12)}", time=time.time())
        self.account = OPEN
        self.max_request_s, self.deadline = max_request_s, asyncio.get_running_loop().time() + max_request_s

    def admit(self, account: Account) -> None:
        """The request has come with this account's key."""
        self.account, self.record.key = account, account.name

    def begin(self, answer_id: str, generations: Sequence[Generation], prompt_tokens: int) -> None:
        """The engine has taken the request."""
        self.record.id, self.record.prompt_tokens = answer_id, prompt_tokens
        self.record.generation_ids = tuple(generation.id for generation in generations)
        self.account.use_tokens(prompt_tokens)

    def see(self, index: int, event: Event) -> None:
        """Counts an event of choice `index`."""
        record = self.record
        record.completion_tokens += len(event.tokens)
        self.account.use_tokens(len(event.tokens))
        if record.first_token_s is None and event.tokens:
            record.first_token_s = time.perf_counter() - self._began
        if index == 0:
            record.completion += event.text
            record.finish_reason = event.finish_reason

    def show(self, completion: Completion) -> None:
        """The answer's first choice is this one."""
        self.record.completion, self.record.finish_reason = completion.text, completion.finish_reason

    def finish(self, status: int) -> None:
        """Passes the record on with its status and latency; no effect after the first call."""
        if self._is_finished:
            return
        self._is_finished = True
        self.record.status = status
        self.record.latency_s = time.perf_counter() - self._began
        for observe in self._observers:
            observe(self.record)
