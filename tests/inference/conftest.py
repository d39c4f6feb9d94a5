"""A tiny random model with a byte tokenizer, shared by all tests here."""

import jax
import pytest

from lifecycle.inference.model import Model
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import init_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate


@pytest.fixture(scope="session")
def model() -> Model:
    tokenizer = ByteTokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        max_seq_len=320,
    )  # fmt: skip
    return Model(config, init_params(config, jax.random.key(0)), tokenizer, ChatTemplate(tokenizer), version="v0")
