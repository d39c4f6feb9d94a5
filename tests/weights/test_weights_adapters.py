"""Adapters in PEFT's form: logits and greedy tokens as peft computes them, and faults that are refused by name."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lifecycle.core.typing import Array
from lifecycle.model.adapters import adapter_tree, with_adapters
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import layers_apart
from lifecycle.weights.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterError,
    merged,
    read_adapter,
    save_adapter,
)
from lifecycle.weights.published import load_config, load_weights
from tests.golden.family_weights import write_model

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

GOLDEN = Path(__file__).parents[1] / "golden"
BASES = {"llama3_qv": "llama3", "llama3_all": "llama3", "llama3_dora": "llama3", "deepseek_v3": "deepseek_v3"}
WHOLE_MODEL = 1e-4


@partial(jax.jit, static_argnums=0)
def all_logits(config: ModelConfig, params: Any, tokens: Array) -> Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return logits(config, params, forward(config, params, tokens, positions))


@pytest.mark.parametrize("name", ["llama3_qv", "llama3_all", pytest.param("deepseek_v3", marks=pytest.mark.long)])
def test_logits_are_those_of_peft_with_the_bank_and_with_merged_weights(name: str, tmp_path: Path) -> None:
    write_model(GOLDEN / "families" / BASES[name], tmp_path)
    config = load_config(tmp_path).model_copy(update={"compute_dtype": "float32"})
    params, expected = load_weights(config, tmp_path), np.load(GOLDEN / "adapters" / name / "expected.npz")
    adapter = read_adapter(config, GOLDEN / "adapters" / name)
    bank = adapter_tree(config, adapter.matrices, adapter.rank + 1, "float32")
    rows = jnp.asarray([0], jnp.int32)  # of all tokens
    for held in (with_adapters(layers_apart(config, params), bank, rows), merged(params, adapter)):
        found = all_logits(config, held, expected["tokens"])
        assert np.abs(found - expected["logits"]).max() < WHOLE_MODEL
    plain = all_logits(config, params, expected["tokens"])
    assert np.abs(plain - expected["logits"]).max() > 1
    unused = all_logits(config, with_adapters(layers_apart(config, params), bank, rows - 1), expected["tokens"])
    assert np.array_equal(unused, plain)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("llama3")
    write_model(GOLDEN / "families" / "llama3", folder)
    return load_config(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "adapters" / "llama3_qv", tmp_path / "adapter"))


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tree = json.loads((folder / ADAPTER_CONFIG).read_text())
        (folder / ADAPTER_CONFIG).write_text(json.dumps(tree | changes))

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        held = load_file(folder / ADAPTER_WEIGHTS)
        change(held)
        save_file(held, folder / ADAPTER_WEIGHTS)

    return rewrite


def cut(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).write_bytes((folder / ADAPTER_WEIGHTS).read_bytes()[:-4])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (settings(peft_type="IA3"), "peft_type=IA3"),
    (settings(use_dora=True), f"missing {Q}.lora_magnitude_vector"),
    (tensors(lambda held: held.update({f"{Q}.lora_magnitude_vector": np.ones(32, "f4")})), "magnitude_vector: not a"),
    (settings(modules_to_save=["lm_head"]), "modules_to_save=['lm_head'] is not supported"),
    (settings(new_kind={"a": 1}), "new_kind={'a': 1} is not supported"),
    (settings(bias="all"), "bias=all"),
    (settings(init_lora_weights="pissa_niter_4"), "init_lora_weights=pissa_niter_4"),
    (settings(rank_pattern={"layers.[01].q": 2}), "'layers.[01].q' in a pattern is a regular expression"),
    (settings(r=0), "r: Input should be greater than or equal to 1"),
    (settings(r=5), f"{Q}.lora_A.weight: shape (4, 32), by the model and adapter_config.json (5, 32)"),
    (settings(lora_alpha=float("inf")), "lora_alpha: "),
    (settings(target_modules=["q_proj", "v_proj", "o_proj"]), "missing base_model.model.model.layers.0.self_attn.o_p"),
    (tensors(lambda held: held.pop(f"{Q}.lora_B.weight")), f"missing {Q}.lora_B.weight"),
    (tensors(lambda held: held.update({"base_model.model.lm_head.lora_A.weight": np.ones((4, 32))[:1]})), "lm_head"),
    (tensors(lambda held: held[f"{Q}.lora_A.weight"].fill(np.nan)), "not finite numbers in the matrices of blocks.0"),
    (tensors(lambda held: held.clear()), "missing"),
    (cut, "not a complete safetensors file"),
    (without(ADAPTER_CONFIG), "no adapter_config.json here"),
    (without(ADAPTER_WEIGHTS), "no adapter_model.safetensors here"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_what_does_not_fit_is_refused_by_name(
    config: ModelConfig, folder: Path, break_it: Callable[[Path], None], message: str
) -> None:
    read_adapter(config, folder)
    break_it(folder)
    with pytest.raises(ValueError) as refused:
        read_adapter(config, folder)
    assert message in str(refused.value)


def test_an_adapter_of_another_model_is_refused(config: ModelConfig) -> None:
    with pytest.raises(AdapterError, match="not a tensor of a matrix that can be adapted"):
        read_adapter(config, GOLDEN / "adapters" / "deepseek_v3")


@pytest.mark.parametrize("name", BASES)
def test_what_is_saved_is_read_again(name: str, tmp_path: Path) -> None:
    """Ranks that differ, columns in another order, and DoRA's lengths."""
    write_model(GOLDEN / "families" / BASES[name], tmp_path)
    config = load_config(tmp_path)
    adapter = read_adapter(config, GOLDEN / "adapters" / name)
    save_adapter(config, adapter, tmp_path / "again", "base")
    again = read_adapter(config, tmp_path / "again")
    assert again.version == adapter.version
    assert again.matrices.keys() == adapter.matrices.keys()


def test_the_version_is_of_the_numbers(config: ModelConfig, folder: Path) -> None:
    version = read_adapter(config, folder).version
    settings(peft_version="0.1", inference_mode=False)(folder)
    assert read_adapter(config, folder).version == version
    settings(lora_alpha=7)(folder)  # of the queries' product
    assert read_adapter(config, folder).version != version
