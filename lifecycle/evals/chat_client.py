"""Asks a server that speaks OpenAI's API: in parallel, with a bounded number of tries.

The key is read from an environment variable at each request, and appears in no message, record or setting.
"""

import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NamedTuple

from lifecycle.core.config import ConfigError

# No connection, or none of the API's; the last of brackets in brackets.
NO_ANSWER = (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError)
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # what may pass
LONGEST_WAIT_S = 30.0
LARGEST_ANSWER = 1 << 20
REFUSED = "refusal"  # why an answer ended, where the API says that the model refuses


class AskError(ValueError):
    """There is no answer: the server refuses this request, or (`may_pass`) no try is left."""

    def __init__(self, said: str, may_pass: bool = False) -> None:
        super().__init__(said)
        self.may_pass = may_pass


class Answer(NamedTuple):
    """What a model says, and why it ended there: `stop`, `length` ..., as the API has it; empty if it does not say."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class ChatClient:
    """Where to ask, and how patiently. `key_variable`: the environment variable with the key; empty for none."""

    base_url: str
    model: str
    key_variable: str
    timeout_s: float
    tries: int
    concurrency: int

    def ask_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[str | AskError]:
        """The content of each answer, in order, or why there is none; raises `AskError` at once if the server refuses
        for a reason that no other request could change (a wrong key, address or model)."""
        self.key()
        with ThreadPoolExecutor(self.concurrency) as threads:
            return [answer.text if isinstance(answer, Answer) else answer for answer in threads.map(self.ask, bodies)]

    def key(self) -> str:
        """The key; raises `ConfigError` if its variable is not set."""
        if not self.key_variable:
            return ""
        if not os.environ.get(self.key_variable):
            raise ConfigError(f"{self.base_url} needs a key: set the environment variable {self.key_variable}")
        return os.environ[self.key_variable]

    def ask(self, body: Mapping[str, Any]) -> Answer | AskError:
        """The answer, or why there is none; raises as `ask_all`."""
        problem, told = "", 0.0
        for number in range(self.tries):
            if number:
                time.sleep(max(told, min(LONGEST_WAIT_S, 0.5 * 2**number) * random.uniform(0.5, 1.0)))
            try:
                return self._answer(body)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {_said(error)}"
                if error.code in (401, 403, 404):
                    raise AskError(f"{self.base_url} refuses all requests: {problem}") from None
                if error.code not in AGAIN:
                    return AskError(problem)
                told = _told_to_wait(error.headers.get("Retry-After"))
            except NO_ANSWER as error:
                problem = f"{type(error).__name__}: {error}"
        return AskError(f"{problem} ({self.tries} tries)", may_pass=True)

    def _answer(self, body: Mapping[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if (key := self.key()) else {}
        )
        whole = json.dumps({"model": self.model, **body}).encode()
        request = urllib.request.Request(f"{self.base_url.rstrip('/')}/chat/completions", whole, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            choice = json.loads(answer.read(LARGEST_ANSWER))["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError("the answer has no message")
        reason = REFUSED if message.get("refusal") else str(choice.get("finish_reason") or "")
        content = message.get("content")
        if content is None and reason:  # it ended before any text, among thoughts or by a refusal
            content = ""
        if not isinstance(content, str):
            raise TypeError("the answer has no content")
        return Answer(content, reason)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(2000).decode(errors="replace")[:300]
    except (OSError, HTTPException) as cut:
        return f"{error.reason} ({type(cut).__name__} behind it)"


def _told_to_wait(seconds: str | None) -> float:
    return min(LONGEST_WAIT_S, float(seconds)) if seconds is not None and seconds.isdecimal() else 0.0
