"""GGUF written: llama.cpp's logits and tokens, its quantisers' blocks, its choice of encodings; refusals by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.cli.export import export
from lifecycle.cli.export_gguf import export_gguf
from lifecycle.cli.import_weights import import_gguf
from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig, MoeConfig, RopeScaling
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import read_template
from lifecycle.text.gguf_vocabulary import vocabulary_of
from lifecycle.text.interface import TokenizerError
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights.families.family import differences
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.gguf_encodings import dequantise, encoding_named, quantise
from lifecycle.weights.gguf_mixtures import MIXTURES
from lifecycle.weights.gguf_models import metadata_of
from lifecycle.weights.published import WeightsError, load_config, load_weights, save_weights
from tests.golden.gguf_models import MODELS, PROMPT, content_hash, write_bundle
from tests.golden.make_llama_cpp_golden import QUANTISED, TEXTS, drawn_values

GOLDEN = Path(__file__).parents[1] / "golden/gguf_files/llama_cpp.npz"
REMAKE = "what we write has changed: run tests/golden/make_llama_cpp_golden.py"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


ALWAYS = ("llama", "gemma3_text", "gpt_oss")  # the others, which compile as long, run with `slow`


@pytest.mark.parametrize("name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_llama_cpp_computes_what_we_do(name: str, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The same F16 file: its greedy tokens are ours, of the weights read back, and its logits up to its own F16."""
    bundle, path = write_bundle(name, tmp_path / name), tmp_path / f"{name}.gguf"
    export_gguf(bundle, path, "f16")
    assert content_hash(path) == golden[f"{name}_hash"], REMAKE
    import_gguf(path, tmp_path / "back")
    config = load_config(tmp_path / "back")
    assert differences(config, MODELS[name]) == (["family='llama'"] if name == "mistral" else [])
    greedy = golden[f"{name}_greedy"].tolist()
    found = logits_of(config, load_weights(config, tmp_path / "back"), [*PROMPT, *greedy[:-1]])
    assert found[len(PROMPT) - 1 :].argmax(axis=1).tolist() == greedy
    expected = golden[f"{name}_logits"]
    error = found[: len(PROMPT)] - expected
    assert np.sqrt((error**2).mean()) < 0.005 * expected.std()  # llama.cpp rounds what it multiplies to F16


def logits_of(config: ModelConfig, params: Any, ids: Sequence[int]) -> np.ndarray:
    @jax.jit
    def run(params: Any, tokens: Any) -> Any:
        return logits(config, params, forward(config, params, tokens, jnp.arange(len(ids))[None]))

    return np.asarray(run(params, jnp.asarray([ids]))[0], np.float32)


@pytest.mark.parametrize("name", QUANTISED)
def test_k_quants_are_ggmls(name: str, golden: dict[str, np.ndarray]) -> None:
    """Nearly all bytes are the C code's, which adds floats in another order; the error is the same."""
    values, encoding = drawn_values(), encoding_named(name)
    found, expected = quantise(values, encoding), golden[f"{name}_blocks"]
    assert found.shape == expected.shape and (found == expected)[found.size // 6 :].mean() > 0.99  # the usual rows
    errors = [np.abs(dequantise(x, encoding).reshape(values.shape) - values).max(axis=1) for x in (found, expected)]
    assert np.all(errors[0] <= 1.1 * errors[1] + 1e-12)
    assert not dequantise(quantise(np.zeros((1, 256), np.float32), encoding), encoding).any()


WIDE: dict[str, Any] = {"d_model": 256, "d_ff": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "num_layers": 8}


def wide_bundle(out: Path, **changes: Any) -> Path:
    """Of a Llama whose rows are whole blocks of 256."""
    write_bundle("llama", out)
    config = ModelConfig.model_validate(MODELS["llama"].model_dump() | WIDE | changes)
    save_weights(config, random_params(config), out)
    return out


def test_q4_k_m_gives_more_bits_to_the_tensors_that_llama_quantize_does(tmp_path: Path) -> None:
    """llama-quantize's own choice for this model: Q6_K for the head, values and down matrices of layers 0, 3, 6, 7."""
    bundle, path = wide_bundle(tmp_path / "wide"), tmp_path / "wide.gguf"
    export_gguf(bundle, path, "q4_k_m")
    file = GgufFile(path)
    named = {name: tensor.encoding.name for name, tensor in file._tensors.items()}
    more = [f"blk.{layer}.{part}.weight" for layer in (0, 3, 6, 7) for part in ("attn_v", "ffn_down")]
    assert {name for name, kind in named.items() if kind == "Q6_K"} == {"output.weight", *more}
    assert {name for name, kind in named.items() if kind == "F32"} == {n for n in named if n.endswith("norm.weight")}
    assert set(named.values()) == {"F32", "Q4_K", "Q6_K"} and file.metadata["general.file_type"] == 15
    import_gguf(path, tmp_path / "back")
    config = load_config(bundle)
    ours, theirs = (load_weights(config, folder) for folder in (bundle, tmp_path / "back"))
    errors = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), ours, theirs)
    assert 0 < max(jax.tree.leaves(errors)) < 0.05  # of values of 0.1 on average


EIGHT = {"family": "mixtral", "moe": MoeConfig(num_experts=8, experts_per_token=2, d_ff=512).model_dump()}


@pytest.mark.parametrize(
    ("changes", "tensor", "encodings"),
    [
        ({}, "blk.1.attn_q.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K")),
        ({"d_model": 288, "head_dim": 72}, "blk.1.attn_q.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q5_0")),
        ({"d_model": 40, "head_dim": 10}, "blk.1.attn_q.weight", ("F16", "BF16", "F16", "F16", "F16")),
        ({}, "output.weight", ("F16", "BF16", "Q8_0", "Q6_K", "Q6_K")),
        ({"d_model": 288}, "output.weight", ("F16", "BF16", "Q8_0", "Q8_0", "Q8_0")),
        ({"tie_embeddings": True}, "token_embd.weight", ("F16", "BF16", "Q8_0", "Q6_K", "Q6_K")),
        ({}, "token_embd.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K")),
        ({}, "blk.0.ffn_gate_inp.weight", ("F32",) * 5),
        ({}, "blk.0.attn_q.bias", ("F32",) * 5),
        (EIGHT, "blk.0.attn_k.weight", ("F16", "BF16", "Q8_0", "Q8_0", "Q8_0")),
        (EIGHT, "blk.1.attn_output.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q5_K")),
        (EIGHT, "blk.0.ffn_down_exps.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q6_K")),
        ({"num_layers": 80}, "blk.11.attn_v.weight", ("F16", "BF16", "Q8_0", "Q4_0", "Q5_K")),
    ],
)
def test_tensors_have_the_encodings_that_llama_quantize_chooses(
    changes: dict[str, Any], tensor: str, encodings: tuple[str, ...]
) -> None:
    """Compared with files of llama.cpp's `llama_model_quantize`, tensor by tensor (docs/log.md). Rows that are no whole
    number of blocks get smaller ones."""
    config = ModelConfig.model_validate(MODELS["llama"].model_dump() | WIDE | changes)
    mixtures = [MIXTURES[name] for name in ("f16", "bf16", "q8_0", "q4_0", "q4_k_m")]
    shape = (512, config.d_model)
    assert tuple(mixture.encoding(tensor, shape, config).name for mixture in mixtures) == encodings


def test_llama_cpp_and_we_encode_alike(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    bundle = write_bundle("llama", tmp_path / "llama")
    tokenizer = load_tokenizer(bundle)
    assert [i for text in TEXTS for i in (*tokenizer.encode(text), -1)] == golden["vocabulary"].tolist()


def test_the_tokenizer_template_and_special_ids_come_back(tmp_path: Path) -> None:
    bundle = write_bundle("llama", tmp_path / "llama")
    export(bundle, str(tmp_path / "f32.gguf"), encoding="f32")
    import_gguf(tmp_path / "f32.gguf", tmp_path / "back")
    ours, theirs = load_tokenizer(bundle), load_tokenizer(tmp_path / "back")
    assert ours.fingerprint == theirs.fingerprint and ours.adds_bos == theirs.adds_bos
    assert read_template(bundle) == read_template(tmp_path / "back")
    config = load_config(bundle)
    same = jax.tree.map(np.array_equal, load_weights(config, bundle), load_weights(config, tmp_path / "back"))
    assert all(jax.tree.leaves(same))


def test_what_is_not_written_is_said(tmp_path: Path) -> None:
    bundle = write_bundle("llama", tmp_path / "llama")
    out = tmp_path / "out.gguf"
    with pytest.raises(
        ConfigError, match=r"llama is a bundle; say what to write: lifecycle export BUNDLE OUT\.gguf, or"
    ):
        export(bundle, "train.steps=3")
    with pytest.raises(ConfigError, match=r"--encoding is of what is written from a bundle; export"):
        export(tmp_path / "run.yaml", encoding="f16")
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"out\.gguf already exists"):
        export(bundle, str(out))
    (tmp_path / "bytes").mkdir()
    ByteTokenizer().save(tmp_path / "bytes")
    with pytest.raises(TokenizerError, match=r"llama\.cpp has no tokenizer of plain bytes"):
        vocabulary_of(tmp_path / "bytes", 261)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "llama", "out.gguf"]
    assert out.read_text() == "mine"


def test_a_weight_beyond_float16_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    bundle = write_bundle("llama", tmp_path / "llama")
    params = random_params(MODELS["llama"])
    params["embed"] = params["embed"].at[7, 3].set(1e5)
    save_weights(MODELS["llama"], params, bundle)
    with pytest.raises(WeightsError, match=r"token_embd\.weight: a weight of 1e\+05 is beyond float16; export"):
        export(bundle, str(tmp_path / "out.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
    export(bundle, str(tmp_path / "out.gguf"), encoding="bf16")
    assert GgufFile(tmp_path / "out.gguf").read("token_embd.weight", (slice(7, 8), slice(3, 4)))[0, 0] > 9e4


SHORT = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=64)
EXPERTS = MoeConfig(num_experts=4, experts_per_token=2, d_ff=16, first_dense_layers=1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mistral",
            {"layer_pattern": ("local",), "window": 5},
            r"'llama' has no key for layer_pattern=.*, window=5: it",
        ),
        ("qwen3_moe", {"moe": EXPERTS.model_dump()}, r"'qwen3moe' has no key for moe\.first_dense_layers=1"),
        ("gemma2", {"attention_scale": 0.1}, r"'gemma2' has no key for attention_scale=0\.1: it cannot run this model"),
        ("llama", {"family": "deepseek_v3"}, r"family 'deepseek_v3' is not written to GGUF; llama, mistral, mixtral"),
        ("llama", {"moe": EXPERTS.model_dump()}, r"family 'llama' has no model\.moe"),
        ("llama3", {"rope_scaling": SHORT.model_dump()}, r"is not Llama 3's scaling, of .*original_max_seq_len=8192"),
    ],
)
def test_a_model_that_llama_cpp_cannot_run_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    config = ModelConfig.model_validate(MODELS[name].model_dump() | changes)
    with pytest.raises(WeightsError, match=message):
        metadata_of(config)
