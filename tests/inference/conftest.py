"""A tiny random model with a byte tokenizer, shared by all tests here."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from lifecycle.inference.model import Model
from lifecycle.testing.models import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model(version="v0")


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """What JAX compiles during the test; the end of the test shows that a compilation is heard."""
    heard: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        heard.extend([event] if "backend_compile" in event else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield heard
    before = len(heard)
    jax.jit(lambda x: x * 3 + 1)(np.zeros(7))
    assert len(heard) > before
