"""Weights in 8 bits: near the plain ones, the same for scores, one device, a mesh, and a kernel of the CPU's own."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.inference import programs
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.kernels.linear import is_in_8_bits
from lifecycle.kernels.packed import PackedWeight, has_kernel
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, parameters
from lifecycle.model.quantised import is_quantised
from lifecycle.model.weight_formats import in_format, is_table, packed_params
from lifecycle.parallel.mesh import make_mesh
from lifecycle.testing.families import LLAMA, MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.scoring import loglikelihoods
from lifecycle.weights.published import save_weights

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, stop_ids=(), prompt_logprobs=0)
PROMPTS = [[7, 1, 80], [5] * 20, [3, 2, 9, 40, 11]]
NAMES = ("llama3", "gemma2", "qwen3_moe", "deepseek_v3")
MEASURED = [
    pytest.param("llama3", marks=pytest.mark.slow),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen3_moe", "deepseek_v3")),
]


def model_of(config: ModelConfig, params: Params) -> Model:
    tokenizer = ByteTokenizer()
    return Model(config, params, tokenizer, ChatTemplate(tokenizer))


def tiny(name: str) -> ModelConfig:
    """A tiny model whose sizes the kernel takes, but for the experts'."""
    return MODELS[name].model_copy(update={"vocab_size": 272, "d_model": 32, "d_ff": 48})


@pytest.mark.parametrize("name", NAMES)
def test_all_matrices_are_in_8_bits_and_nothing_else_is(name: str) -> None:
    config = tiny(name)
    held = in_format(config, random_params(config), "int8")
    wanted = jax.tree.map(lambda known: is_table(known) or is_quantised(known), parameters(config))
    assert jax.tree.map(is_in_8_bits, held, is_leaf=is_in_8_bits) == wanted


@pytest.mark.parametrize("name", MEASURED)
def test_likelihoods_are_those_of_the_programs_and_near_the_plain_weights(name: str) -> None:
    config = tiny(name)
    plain = random_params(config)
    held = in_format(config, plain, "int8")
    model = model_of(config, held)
    pairs = [(prompt[:1], prompt[1:]) for prompt in PROMPTS]
    scores = loglikelihoods(config, held, pairs, make_mesh())
    with Engine(model) as engine:
        asked = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        assert all(one.wait() for one in asked)
    served = [sum(token.logprob for token in one.prompt_tokens) for one in asked]
    np.testing.assert_allclose(served, scores, rtol=2e-3)
    np.testing.assert_allclose(scores, loglikelihoods(config, plain, pairs, make_mesh()), rtol=0.03)


@pytest.mark.slow
def test_the_kernel_decodes_what_xla_does(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_kernel():
        pytest.skip("needs llvmlite (uv sync) and a CPU with AVX-512 VNNI")
    config = tiny("llama3")
    model = model_of(config, in_format(config, random_params(config), "int8"))
    seen: list[Params] = []
    monkeypatch.setattr(programs, "packed_params", lambda params: seen.append(packed_params(params)) or seen[-1])
    by_kernel = generate(model, PROMPTS, GREEDY)
    leaves = jax.tree.leaves(seen[0], is_leaf=is_in_8_bits)
    assert all(isinstance(leaf, PackedWeight) for leaf in leaves if is_in_8_bits(leaf))
    monkeypatch.setattr(programs, "packed_params", lambda params: params)
    by_xla = generate(model, PROMPTS, GREEDY)
    assert [one.token_ids for one in by_kernel] == [one.token_ids for one in by_xla]


def test_a_bundle_is_loaded_in_8_bits(tmp_path: Path) -> None:
    config = LLAMA.model_copy(update={"vocab_size": 264})
    model = model_of(config, random_params(config))
    save_weights(config, model.params, tmp_path)
    model.tokenizer.save(tmp_path)
    model.template.save(tmp_path)
    loaded = load_bundle(tmp_path, weights="int8").params
    expected = in_format(config, model.params, "int8")
    assert jax.tree.all(jax.tree.map(lambda one, other: bool(jnp.array_equal(one, other)), loaded, expected))
    assert generate(replace(model, params=loaded), [[65]], GREEDY) == generate(
        replace(model, params=expected), [[65]], GREEDY
    )
