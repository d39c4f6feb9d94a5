"""Adapters that stages train, opened by PEFT in the environment that LIFECYCLE_PARITY_PYTHON names."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, with_fresh_adapter, without_adapter
from lifecycle.model.stacks import ADAPTER
from lifecycle.weights.published import save_weights
from lifecycle.weights.trained_adapters import matrices_of, save_trained
from tests.parity.test_parity_families import LENGTH, WHOLE_MODEL, config_of, noisy_params, pytestmark, run_there

__all__ = ["pytestmark"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama2", {"rank": 4, "alpha": 8}),
    "rslora": ("llama3", {"rank": 3, "alpha": 2, "scaling": "rslora", "targets": ("q", "v", "down")}),
    "dora": ("qwen3", {"rank": 4, "alpha": 3, "kind": "dora"}),
    "latent": ("deepseek_v3", {"rank": 4, "alpha": 3, "kind": "dora", "targets": ("q_down", "q_up", "kv_down", "o")}),
}


def adapted(name: str, folder: Path) -> tuple[ModelConfig, Params, np.ndarray]:
    """A base model and an adapter far from its first values, both saved in a folder; its config and parameters."""
    family, settings = CASES[name]
    base = config_of(family)
    config = base.model_copy(update={"adapter": AdapterConfig.model_validate(settings)})
    plain, draws = noisy_params(base, 0), np.random.default_rng(1)
    params = with_fresh_adapter(config, plain, jax.random.key(0))
    params[ADAPTER] = jax.tree.map(lambda x: x + 0.2 * draws.standard_normal(x.shape, np.float32), params[ADAPTER])
    tokens = draws.integers(0, base.vocab_size, (2, LENGTH)).astype(np.int32)
    save_weights(base, plain, folder, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    save_trained(config, matrices_of(params[ADAPTER]), folder / "adapter", str(folder))
    np.save(folder / "tokens.npy", tokens)
    return config, params, tokens


def test_peft_computes_what_was_trained(tmp_path: Path) -> None:
    models = {}
    for name in CASES:
        (tmp_path / name).mkdir()
        models[name] = adapted(name, tmp_path / name)
    run_there(Path(__file__).with_name("open_adapters.py"), *(tmp_path / name for name in CASES))
    for name, (config, params, tokens) in models.items():
        positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)

        def run(model: ModelConfig, params: Params, tokens: Any = tokens, positions: Any = positions) -> Any:
            return logits(model, params, forward(model, params, tokens, positions))

        ours = jax.jit(run, static_argnums=0)(config, params)
        merged = jax.jit(run, static_argnums=0)(config.target, without_adapter(config, params))
        for file, found in {"logits": ours, "merged": merged}.items():
            expected = np.load(tmp_path / name / f"{file}.npy")
            np.testing.assert_allclose(found, expected, atol=WHOLE_MODEL, rtol=0, err_msg=f"{name} {file}")
            assert expected.std() > 0.5
