"""API keys: who may ask, for which models, and how much.

A file names the keys; it has their SHA-256, or the environment variable that holds one, never a key itself. What must
hold: a key is compared in constant time, and is never written anywhere.
"""

import hashlib
import hmac
import math
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, Section, load_config
from lifecycle.serving.errors import RequestError
from lifecycle.serving.limits import Bucket, Clock


class KeyConfig(Section):
    """One key; without limits where none is given."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the key's UTF-8 bytes, hexadecimal
    env: str | None = None  # the environment variable that holds the key
    models: tuple[str, ...] | None = None  # names that it may ask for; None: all
    may_load_adapters: bool = False  # and unload them, under these names
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)  # of prompts and answers together

    @model_validator(mode="after")
    def _require_one(self) -> "KeyConfig":
        if (self.sha256 is None) == (self.env is None):
            raise ValueError("give either sha256, of the key, or env, the variable that holds it")
        return self

    def digest(self, where: str) -> bytes:
        """The SHA-256 of the key; raises `ConfigError` for a variable that is not set."""
        if self.env is None:
            return bytes.fromhex(self.sha256 or "")
        if not (key := os.environ.get(self.env)):
            raise ConfigError(f"{where}: the environment variable {self.env} is not set or empty")
        return hashlib.sha256(key.encode()).digest()


class KeysFile(Section):
    """The keys by name; names are shown in the request log."""

    keys: Annotated[dict[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")], KeyConfig], Field(min_length=1)]


class Account:
    """A key while the server runs: what it may ask for, and what is left of its limits."""

    def __init__(self, name: str, config: KeyConfig, clock: Clock = time.monotonic) -> None:
        self.name = name
        self.may_load_adapters = config.may_load_adapters
        self._models = config.models
        limits = {"requests": config.requests_per_minute, "tokens": config.tokens_per_minute}
        self._buckets = {unit: Bucket(limit, clock) for unit, limit in limits.items() if limit is not None}

    def may_use(self, model: str) -> bool:
        """Whether the key may ask for a model by this name."""
        return self._models is None or model in self._models

    def begin_request(self) -> None:
        """Counts a request; raises `RequestError` with status 429 if a limit is reached."""
        for unit, bucket in self._buckets.items():
            if (wait_s := bucket.wait_s) > 0:
                message = f"this key's limit of {bucket.per_minute} {unit} a minute is reached; retry later"
                headers = {"Retry-After": str(math.ceil(wait_s)), **self.headers()}
                raise RequestError(429, message, code="rate_limit_exceeded", headers=headers)
        self._take("requests", 1)

    def use_tokens(self, number: int) -> None:
        """Counts tokens of a prompt or of an answer."""
        self._take("tokens", number)

    def headers(self) -> dict[str, str]:
        """OpenAI's headers: each limit, what is left of it, and when all of it will be there again."""
        shown: dict[str, str] = {}
        for unit, bucket in self._buckets.items():
            shown[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
            shown[f"x-ratelimit-remaining-{unit}"] = str(bucket.left)
            shown[f"x-ratelimit-reset-{unit}"] = f"{bucket.full_s:.3f}s"
        return shown

    def _take(self, unit: str, number: int) -> None:
        if unit in self._buckets:
            self._buckets[unit].take(number)


OPEN = Account("", KeyConfig(env="-", may_load_adapters=True))  # of everybody, where no key is needed


class KeyRing:
    """The keys that a server knows; without any, all may ask."""

    def __init__(self, accounts: Collection[tuple[bytes, Account]] = ()) -> None:
        self._accounts = accounts

    def account(self, authorization: str) -> Account:
        """The account of a request's `Authorization` header; raises `RequestError` with status 401."""
        if not self._accounts:
            return OPEN
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        found = [account for known, account in self._accounts if hmac.compare_digest(known, digest)]  # no early end
        if scheme.lower() != "bearer" or not found:
            raise RequestError(401, "incorrect API key; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        return found[0]


def read_keys(path: Path | None, clock: Clock = time.monotonic) -> KeyRing:
    """The keys of a file, none without one; raises `ConfigError` for a faulty file and for a key that has two names."""
    if path is None:
        return KeyRing()
    names: dict[bytes, str] = {}
    accounts: list[tuple[bytes, Account]] = []
    for name, config in load_config(KeysFile, path).keys.items():
        digest = config.digest(f"{path}: keys.{name}.env")
        if (other := names.setdefault(digest, name)) != name:
            raise ConfigError(f"{path}: {other} and {name} are the same key; give each its own")
        accounts.append((digest, Account(name, config, clock)))
    return KeyRing(accounts)
