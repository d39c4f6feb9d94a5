"""Small random models, with tokenizer and chat template, for the engine and the server."""

from typing import Any

from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate

# Sizes of the model behind the tests' servers: one for all, so that engines with as many slots share their programs.
SERVED: dict[str, Any] = {
    "d_model": 16,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "max_seq_len": 4096,
}


def random_model(seed: int = 0, version: str = "", defaults: SamplingParams | None = None, **sizes: Any) -> Model:
    """A model of random weights with a byte tokenizer; `sizes` are fields of `ModelConfig`."""
    tokenizer = ByteTokenizer()
    fields = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    config = ModelConfig.model_validate({"vocab_size": tokenizer.vocab_size, "max_seq_len": 320} | fields | sizes)
    params = random_params(config, seed)
    return Model(config, params, tokenizer, ChatTemplate(tokenizer), defaults or SamplingParams(), version)
