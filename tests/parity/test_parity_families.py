"""Every family live against transformers, in the environment that LIFECYCLE_PARITY_PYTHON names: our exports opened by
`AutoModelForCausalLM` and `AutoModelForSequenceClassification`, and the golden values made again."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import init_params
from lifecycle.weights.published import CONFIG, family_of, load_config, save_weights

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob(f"families/*/{CONFIG}"))
WHOLE_MODEL = 1e-4  # float32, a whole model
LENGTH = 40
PYTHON = os.environ.get("LIFECYCLE_PARITY_PYTHON")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(PYTHON is None, reason="LIFECYCLE_PARITY_PYTHON names no Python with torch and transformers"),
]


@dataclass(frozen=True)
class Exported:
    """A model of ours as it was saved, and the tokens that transformers is given."""

    config: ModelConfig
    params: dict[str, Any]
    tokens: np.ndarray
    folder: Path


def run_there(script: Path, *arguments: str | Path) -> None:
    done = subprocess.run([str(PYTHON), str(script), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@cache
def config_of(family: str) -> ModelConfig:
    """The golden model's shape, deeper by a layer so that the patterns end elsewhere."""
    config = load_config(GOLDEN / "families" / family)
    return config.model_copy(update={"num_layers": config.num_layers + 1, "compute_dtype": "float32"})


def noisy_params(config: ModelConfig, seed: int) -> dict[str, Any]:
    """Fresh parameters, no two alike and none at its initial one or zero."""
    key, *keys = jax.random.split(jax.random.key(seed), 1000)
    leaves, tree = jax.tree.flatten(jax.jit(init_params, static_argnums=0)(config, key))
    noisy = [x + 0.2 * jax.random.normal(own, x.shape) for x, own in zip(leaves, keys[: len(leaves)], strict=True)]
    return jax.tree.unflatten(tree, noisy)


def opened_there(
    kind: str, configs: Mapping[str, ModelConfig], folders: pytest.TempPathFactory, first_id: int = 0
) -> dict[str, Exported]:
    """Models of all families, saved by us and opened there in one process, which leaves their `kind` of outputs."""
    models: dict[str, Exported] = {}
    for seed, (family, config) in enumerate(configs.items()):
        folder = folders.mktemp(f"{family}-{kind}")
        tokens = np.random.default_rng(seed).integers(first_id, config.vocab_size, (2, LENGTH)).astype(np.int32)
        models[family] = Exported(config, noisy_params(config, seed), tokens, folder)
        save_weights(config, models[family].params, folder, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        np.save(folder / "tokens.npy", tokens)
    run_there(Path(__file__).with_name("open_models.py"), kind, *(model.folder for model in models.values()))
    return models


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """With a score instead of a head; without padding, of which transformers looks for the last token before."""
    whole = {family: config_of(family).model_copy(update={"has_score": True}) for family in FAMILIES}
    parts = {family: family_of(config).exported(config) for family, config in whole.items()}
    return opened_there("scores", parts, tmp_path_factory, first_id=3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return opened_there("logits", {family: config_of(family) for family in FAMILIES}, tmp_path_factory)


def hidden_of(model: Exported, params: dict[str, Any]) -> Array:
    tokens = jnp.asarray(model.tokens)
    return forward(model.config, params, tokens, jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_scores_texts_as_we_do(scorers: dict[str, Exported], family: str) -> None:
    model = scorers[family]
    run = jax.jit(lambda p: hidden_of(model, p)[:, -1] @ p["score"])
    expected = np.load(model.folder / "scores.npy")[:, 0]
    np.testing.assert_allclose(run(model.params), expected, rtol=WHOLE_MODEL, atol=WHOLE_MODEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_is_exported(exported: dict[str, Exported], family: str) -> None:
    model = exported[family]
    run = jax.jit(lambda p: logits(model.config, p, hidden_of(model, p)))
    expected = np.load(model.folder / "logits.npy")
    np.testing.assert_allclose(run(model.params), expected, atol=WHOLE_MODEL, rtol=0)
    assert expected.std() > 0.5  # logits of a size at which the tolerance says something


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    run_there(GOLDEN / "make_family_golden.py", folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_golden_values_are_what_transformers_computes_now(made_again: Path, family: str) -> None:
    stored, new = GOLDEN / "families" / family, made_again / family
    assert (new / "tensors.json").read_text() == (stored / "tensors.json").read_text()
    assert load_config(new) == load_config(stored)
    expected, found = np.load(stored / "expected.npz"), np.load(new / "expected.npz")
    for name in ("tokens", "greedy"):
        assert np.array_equal(found[name], expected[name]), name
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=WHOLE_MODEL, rtol=0)
