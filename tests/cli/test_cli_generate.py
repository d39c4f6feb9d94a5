"""`lifecycle generate`: options that do not go together, or are out of range, before a model is opened."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.cli.generate import generate
from lifecycle.cli.open_model import with_adapter
from lifecycle.cli.sampling import Sampling
from lifecycle.core.config import ConfigError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.kernels.linear import dense, is_rounded
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.models import random_model
from lifecycle.weights.adapters import save_adapter

ROWS = {"prompts": Path("rows.jsonl"), "out": Path("out.jsonl")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give --prompt TEXT, or --prompts"),
        ({"prompt": ("a",), **ROWS}, "give --prompt TEXT, or --prompts"),
        ({"prompt": ("a",), "out": ROWS["out"]}, "give --prompt TEXT, or --prompts"),
        ({"prompts": ROWS["prompts"]}, "give --prompt TEXT, or --prompts"),
        ({"prompt": ("a",), "slots": 0}, "--slots=0: from 1 to 4,096"),
        ({"prompt": ("a",), "slots": 4097}, "--slots=4097: from 1 to 4,096"),
        ({"prompt": ("a",), "plain": True, "system": "Be brief."}, "--plain continues texts, and --system"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(Path("nowhere"), **options)


def test_options_replace_the_models_own_settings_and_no_others() -> None:
    own = SamplingParams(temperature=0.7, top_k=9, stop=("x",), stop_ids=(3,))
    assert Sampling(temperature=0.0, top_k=0).over(own) == own.model_copy(update={"temperature": 0.0, "top_k": 0})
    changed = Sampling(bad_words=("y",), min_tokens=2, ignore_eos=True).over(own)
    assert changed == own.model_copy(update={"bad_words": ("y",), "min_tokens": 2, "stop_ids": ()})
    with pytest.raises(ConfigError, match="presence_penalty"):
        Sampling(presence_penalty=3.0).over(own)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_an_adapter_is_added_to_the_weights_before_they_are_in_a_format(weights: Any, tmp_path: Path) -> None:
    model = random_model(num_layers=3)
    adapter = random_adapter(model.config, seed=1, rank=3)
    save_adapter(model.config, adapter, tmp_path / "adapter", "base")
    found = with_adapter(model, tmp_path / "adapter", weights)
    assert found.version == adapter.version
    pair = adapter.matrices["blocks.2.feed_forward.down"]
    held = found.params["blocks"]["0+1"]["feed_forward"]["down"]
    expected = model.params["blocks"]["0+1"]["feed_forward"]["down"][2] + pair.a.T @ pair.b
    assert is_rounded(held) == (weights is not None)
    layer = jax.tree.map(lambda stack: stack[2], held)
    np.testing.assert_allclose(dense(layer), expected, atol=1e-5 if weights is None else 0.02)
