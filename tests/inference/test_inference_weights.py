"""Rounded weights: near the plain ones, the same for scores, one device, a mesh, and a kernel of the CPU's own."""

from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.inference import weights as in_use
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.linear import is_rounded
from lifecycle.kernels.packed import PackedWeight
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.params import Params, parameters
from lifecycle.model.quantised import is_quantised
from lifecycle.model.weight_formats import check_groups, in_format, is_table, packed_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import make_mesh
from lifecycle.testing.families import LLAMA, MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.scoring import loglikelihoods
from lifecycle.weights.published import save_weights

GREEDY = SamplingParams(temperature=0.0, max_tokens=10, stop_ids=(), prompt_logprobs=0)
PROMPTS = [[7, 1, 80], [5] * 20, [3, 2, 9, 40, 11]]
NAMES = ("llama3", "gemma2", "qwen3_moe", "deepseek_v3")
MEASURED = ("llama3", "qwen3_moe", "deepseek_v3")


def model_of(config: ModelConfig, params: Params) -> Model:
    tokenizer = ByteTokenizer()
    return Model(config, params, tokenizer, ChatTemplate(tokenizer))


def tiny(name: str) -> ModelConfig:
    """A tiny model whose sizes the kernel takes, but for the experts'."""
    return MODELS[name].model_copy(update={"vocab_size": 272, "d_model": 32, "d_ff": 64})


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("name", NAMES)
def test_all_matrices_are_rounded_and_nothing_else_is(name: str, weights: WeightFormat) -> None:
    config = tiny(name)
    held = jax.eval_shape(lambda params: in_format(config, params, weights), random_params(config))
    wanted = jax.tree.map(lambda known: is_table(known) or is_quantised(known), parameters(config))
    assert jax.tree.map(is_rounded, held, is_leaf=is_rounded) == wanted


@pytest.mark.long
@pytest.mark.parametrize("weights, near", [("int8", 0.03), ("int4", 0.2), ("fp8", 0.1)])
@pytest.mark.parametrize("name", MEASURED)
def test_likelihoods_are_those_of_the_programs_and_near_the_plain_weights(
    name: str, weights: WeightFormat, near: float
) -> None:
    config = tiny(name)
    plain = random_params(config)
    held = in_format(config, plain, weights)
    model = model_of(config, held)
    pairs = [(prompt[:1], prompt[1:]) for prompt in PROMPTS]
    scores = loglikelihoods(config, held, pairs, make_mesh())
    with Engine(model) as engine:
        asked = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        assert all(one.wait() for one in asked)
    served = [sum(token.logprob for token in one.prompt_tokens) for one in asked]
    # a cache of latents takes the keys' up-projection to the queries: other rows are rounded, in fp8 by 3 % of a value
    np.testing.assert_allclose(served, scores, rtol=1e-2 if (name, weights) == ("deepseek_v3", "fp8") else 2e-3)
    np.testing.assert_allclose(scores, loglikelihoods(config, plain, pairs, make_mesh()), rtol=near)


@pytest.mark.long
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_kernel_decodes_what_xla_does(monkeypatch: pytest.MonkeyPatch, weights: WeightFormat) -> None:
    if not has_kernel("vnni"):
        pytest.skip("needs a CPU with AVX-512 VNNI")
    config = tiny("llama3")
    model = model_of(config, in_format(config, random_params(config), weights))
    seen: list[Params] = []
    monkeypatch.setattr(in_use, "packed_params", lambda *args: seen.append(packed_params(*args)) or seen[-1])
    by_kernel = generate(model, PROMPTS, GREEDY)
    leaves = jax.tree.leaves(seen[0], is_leaf=is_rounded)
    assert all(isinstance(leaf, PackedWeight) for leaf in leaves if is_rounded(leaf))
    monkeypatch.setattr(in_use, "packed_params", lambda _, __, params: params)
    by_xla = generate(model, PROMPTS, GREEDY)
    assert [one.token_ids for one in by_kernel] == [one.token_ids for one in by_xla]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_bundle_is_loaded_in_a_format(tmp_path: Path, weights: WeightFormat) -> None:
    config = LLAMA.model_copy(update={"vocab_size": 264})
    model = model_of(config, random_params(config))
    save_weights(config, model.params, tmp_path)
    model.tokenizer.save(tmp_path)
    model.template.save(tmp_path)
    loaded = load_bundle(tmp_path, weights=weights).params
    expected = in_format(config, model.params, weights)
    chex.assert_trees_all_equal(loaded, expected, strict=True)
    if weights == "int8":  # one format for the default tests: `test_likelihoods_...` serves all of them
        assert generate(replace(model, params=loaded), [[65]], GREEDY)[0].tokens


def test_a_mesh_that_cuts_groups_is_refused() -> None:
    config = LLAMA.model_copy(update={"d_ff": 96})
    check_groups(config, MeshConfig(tensor=3), "int4")
    check_groups(config, MeshConfig(tensor=2), "fp8")
    with pytest.raises(ConfigError, match=r"mesh.tensor=2 does not divide the 3 groups"):
        check_groups(config, MeshConfig(tensor=2), "int4")
