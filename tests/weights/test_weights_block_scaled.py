"""Scaled blocks: each value by the formats' definition, each part as the whole, and models that are published so."""

import json
from pathlib import Path
from typing import Literal

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lifecycle.cli.import_weights import import_safetensors
from lifecycle.model.config import MlaConfig, ModelConfig, MoeConfig
from lifecycle.testing.families import MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.block_scaled import BlockScaled
from lifecycle.weights.published import CONFIG, WEIGHTS, WeightsError, load_config, load_weights, save_weights
from lifecycle.weights.safetensors_files import SafetensorsReader

EXPERTS, OUTPUTS, INPUTS = 2, 6, 96


@pytest.fixture
def packed(tmp_path: Path) -> tuple[BlockScaled, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (EXPERTS, OUTPUTS, INPUTS // 32, 16), dtype=np.uint8)
    scales = draw.integers(118, 132, (EXPERTS, OUTPUTS, INPUTS // 32), dtype=np.uint8)
    save_file({"x_blocks": blocks, "x_scales": scales}, tmp_path / WEIGHTS)
    return BlockScaled(SafetensorsReader(tmp_path)), blocks, scales


def fp4(bits: int) -> float:
    """Sign, two bits of exponent, one of mantissa (e2m1), by the formats' definition."""
    exponent, mantissa = bits >> 1 & 3, bits & 1
    size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
    return -size if bits & 8 else size


def test_every_mxfp4_value_is_the_definitions(packed: tuple[BlockScaled, np.ndarray, np.ndarray]) -> None:
    source, blocks, scales = packed
    assert source.shapes == {"x": (EXPERTS, INPUTS, OUTPUTS)}
    found = source.read("x", (slice(0, EXPERTS), slice(0, INPUTS), slice(0, OUTPUTS)))
    for expert, value, output in np.ndindex(found.shape):
        byte = int(blocks[expert, output, value // 32, value % 32 // 2])
        bits = byte >> 4 if value % 2 else byte & 15
        scale = 2.0 ** (int(scales[expert, output, value // 32]) - 127)
        assert found[expert, value, output] == fp4(bits) * scale
    assert len(np.unique(found)) > 60


def test_a_part_is_the_same_as_of_the_whole(packed: tuple[BlockScaled, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    source = packed[0]
    everything = source.read("x", (slice(0, EXPERTS), slice(0, INPUTS), slice(0, OUTPUTS)))
    part = (slice(1, 2), slice(20, 70), slice(2, 5))
    assert np.array_equal(source.read("x", part), everything[part])
    draw = np.random.default_rng(1)
    values = draw.standard_normal((200, 300)).astype(ml_dtypes.float8_e4m3fn)
    scales = draw.uniform(0.1, 2, (2, 3)).astype(np.float32)
    folder = tmp_path / "fp8"
    folder.mkdir()
    save_file({"w": values, "w_scale_inv": scales}, folder / WEIGHTS)
    squares = BlockScaled(SafetensorsReader(folder))
    expected = np.array([[float(values[i, j]) * scales[i // 128, j // 128] for j in range(300)] for i in range(200)])
    assert squares.shapes == {"w": (200, 300)} and squares.dtype("w") == ml_dtypes.bfloat16
    whole = squares.read("w", (slice(0, 200), slice(0, 300)))
    assert whole.dtype == np.float32 and np.array_equal(whole, expected.astype(np.float32))
    part = (slice(100, 140), slice(120, 290))
    assert np.array_equal(squares.read("w", part), whole[part])


def test_gpt_oss_is_read_as_it_is_published(tmp_path: Path) -> None:
    """The experts' matrices in MXFP4, all else in bfloat16: the weights are those of the unpacked file."""
    config = ModelConfig.model_validate(MODELS["gpt_oss"].model_dump() | {
        "d_ff": 32, "moe": MoeConfig(num_experts=4, experts_per_token=2, d_ff=32, use_bias=True).model_dump(),
    })  # fmt: skip
    save_weights(config, random_params(config), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    draw = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[name + "_blocks"] = draw.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        tensors[name + "_scales"] = draw.integers(110, 125, (experts, outputs, inputs // 32), dtype=np.uint8)
    save_file(tensors, tmp_path / WEIGHTS)
    tree = json.loads((tmp_path / CONFIG).read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / CONFIG).write_text(json.dumps(tree))
    assert load_config(tmp_path) == config
    loaded = load_weights(config, tmp_path)
    source = BlockScaled(SafetensorsReader(tmp_path))
    both = source.read("model.layers.0.mlp.experts.gate_up_proj", (slice(0, 4), slice(0, 32), slice(0, 64)))
    experts = loaded["blocks"]["0+2"]["feed_forward"]["experts"]
    assert np.array_equal(experts["gate"][0], both[..., ::2]) and np.array_equal(experts["up"][0], both[..., 1::2])
    plain = {name: source.read(name, tuple(slice(0, n) for n in shape)) for name, shape in source.shapes.items()}
    save_file({name: np.ascontiguousarray(x) for name, x in plain.items()}, tmp_path / WEIGHTS)
    again = load_weights(config, tmp_path)
    chex.assert_trees_all_equal(loaded, again, strict=True)


def test_deepseek_v3_is_read_as_it_is_published(tmp_path: Path) -> None:
    """Matrices in float8 with scales, norms and router as they are; a prediction module's are read or passed over."""
    mla = MlaConfig(q_lora_rank=12, kv_lora_rank=8, nope_head_dim=6, rope_head_dim=4, v_head_dim=5)
    config = MODELS["deepseek_v3"].model_copy(update={"mla": mla})
    save_weights(config, random_params(config), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[name + "_scale_inv"] = np.full((1, 1), 0.25, np.float32)
    save_file(tensors, tmp_path / WEIGHTS)
    found, trunk = load_weights(config, tmp_path), load_weights(config.trunk, tmp_path)
    for array, name in [
        (found["blocks"]["0+1"]["attention"]["o"][0], "model.layers.0.self_attn.o_proj.weight"),
        (trunk["blocks"]["0+1"]["attention"]["o"][0], "model.layers.0.self_attn.o_proj.weight"),
        (found["mtp"]["0+1"]["projection"][0], "model.layers.3.eh_proj.weight"),
    ]:
        assert np.array_equal(array, tensors[name].astype(np.float32).T * 0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_is_rounded_once_to_the_dtype_asked_for(dtype: Literal["float32", "bfloat16"], tmp_path: Path) -> None:
    """An imported matrix is the product of value and scale in float32, not that of its published bfloat16."""
    source = tmp_path / "published"
    source.mkdir()
    config = MODELS["deepseek_v3"].model_copy(update={"vocab_size": 261})
    save_weights(config, random_params(config), source)
    ByteTokenizer().save(source)
    tensors, name = load_file(source / WEIGHTS), "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    tensors[name + "_scale_inv"] = np.full((1, 1), 0.1234567, np.float32)
    save_file(tensors, source / WEIGHTS)
    exact = tensors[name].astype(np.float64) * np.float64(np.float32(0.1234567))
    import_safetensors(source, tmp_path / dtype, dtype)
    assert np.array_equal(load_file(tmp_path / dtype / WEIGHTS)[name], exact.astype(np.float32).astype(dtype))


def test_tensors_without_their_scales_are_refused(tmp_path: Path) -> None:
    for tensors, message in [
        ({"a": np.zeros((2, 2), np.uint8)}, r"tensor a is of dtype uint8 without scales"),
        ({"a_blocks": np.zeros((1, 2, 1, 16), np.uint8)}, r"a_blocks has no a_scales that fits it"),
        (
            {"a": np.zeros((200, 2), ml_dtypes.float8_e4m3fn), "a_scale_inv": np.zeros((1, 1), np.float32)},
            r"a_scale_inv has shape \(1, 1\)",
        ),
    ]:
        save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(WeightsError, match=message):
            BlockScaled(SafetensorsReader(tmp_path))
