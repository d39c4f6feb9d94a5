"""A tiny random model with a byte tokenizer, shared by all tests here."""

import pytest

from lifecycle.inference.model import Model
from lifecycle.testing.models import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model(version="v0")
