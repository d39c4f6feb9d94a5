"""Asks a server that speaks OpenAI's API for short structured answers: in parallel, with a bounded number of tries.

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
from typing import Any

from lifecycle.core.config import ConfigError

NO_ANSWER = (OSError, HTTPException, ValueError, LookupError, TypeError)  # no connection, or none of the API's
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # what may pass
LONGEST_WAIT_S = 30.0
LARGEST_ANSWER = 1 << 20


class AskError(ValueError):
    """A server that refuses: another try would not help, or none is left."""


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
            return list(threads.map(self._asked, bodies))

    def key(self) -> str:
        """The key; raises `ConfigError` if its variable is not set."""
        if not self.key_variable:
            return ""
        if not os.environ.get(self.key_variable):
            raise ConfigError(f"the judge needs a key: set the environment variable {self.key_variable}")
        return os.environ[self.key_variable]

    def _asked(self, body: Mapping[str, Any]) -> str | AskError:
        problem, told = "", 0.0
        for number in range(self.tries):
            if number:
                time.sleep(max(told, min(LONGEST_WAIT_S, 0.5 * 2**number) * random.uniform(0.5, 1.0)))
            try:
                return self._answer(body)
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace")
                problem = f"HTTP {error.code}: {said[:300]}"
                if error.code in (401, 403, 404):
                    raise AskError(f"{self.base_url} refuses the judge's requests: {problem}") from None
                if error.code not in AGAIN:
                    return AskError(problem)
                told = _told_to_wait(error.headers.get("Retry-After"))
            except NO_ANSWER as error:
                problem = f"{type(error).__name__}: {error}"
        return AskError(f"{problem} ({self.tries} tries)")

    def _answer(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if (key := self.key()) else {}
        )
        whole = json.dumps({"model": self.model, **body}).encode()
        request = urllib.request.Request(f"{self.base_url.rstrip('/')}/chat/completions", whole, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            content = json.loads(answer.read(LARGEST_ANSWER))["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError("the answer has no content")
        return content


def _told_to_wait(seconds: str | None) -> float:
    return min(LONGEST_WAIT_S, int(seconds)) if seconds is not None and seconds.isdecimal() else 0.0
