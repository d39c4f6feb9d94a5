"""GPTQ, AWQ and compressed-tensors: each value by the formats' definition, any part as the whole, whole models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lifecycle.cli.import_weights import import_safetensors
from lifecycle.testing.families import MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.packed_integers import PackedIntegers
from lifecycle.weights.published import CONFIG, WEIGHTS, WeightsError, load_config, save_weights
from lifecycle.weights.safetensors_files import SafetensorsReader
from lifecycle.weights.tensor_parts import full_index

OUT, IN, SIZE = 16, 32, 8  # outputs, inputs, and inputs in a group
GROUPS = IN // SIZE
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of the integers of a word, from the lowest bits on

type Tensors = dict[str, np.ndarray]


def words(values: np.ndarray, bits: int, columns: tuple[int, ...] | None = None) -> np.ndarray:
    """Rows of small integers in int32, bit by bit; `columns` is their order in a word."""
    count = 32 // bits
    out = np.zeros((values.shape[0], values.shape[1] // count), np.uint32)
    for row, word, place in np.ndindex(*out.shape, count):
        column = word * count + (place if columns is None else columns[place])
        out[row, word] |= np.uint32(int(values[row, column]) << bits * place)
    return out.view(np.int32)


def drawn(bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(integers [in, out], zeros [groups, out], scales [groups, out], groups [in])."""
    draw = np.random.default_rng(seed)
    integers = draw.integers(0, 1 << bits, (IN, OUT))
    zeros = draw.integers(0, 1 << bits, (GROUPS, OUT))
    scales = draw.uniform(0.01, 0.1, (GROUPS, OUT)).astype(np.float16)
    return integers, zeros, scales, draw.integers(0, GROUPS, IN).astype(np.int32)


def gptq(bits: int) -> tuple[Tensors, np.ndarray]:
    """Zeros are stored less one, and 0 as the largest."""
    integers, zeros, scales, groups = drawn(bits)
    tensors = {
        "x.qweight": words(integers.T, bits).T.copy(), "x.qzeros": words((zeros - 1) % (1 << bits), bits),
        "x.scales": scales, "x.g_idx": groups, "x.bias": np.zeros(OUT, np.float16),
    }  # fmt: skip
    return tensors, (integers - zeros[groups]) * scales.astype(np.float32)[groups]


def awq() -> tuple[Tensors, np.ndarray]:
    integers, zeros, scales, _ = drawn(4)
    groups = np.arange(IN) // SIZE
    packed = {"x.qweight": words(integers, 4, AWQ_COLUMNS), "x.qzeros": words(zeros, 4, AWQ_COLUMNS)}
    return packed | {"x.scales": scales}, (integers - zeros[groups]) * scales.astype(np.float32)[groups]


def compressed(bits: int, has_zeros: bool) -> tuple[Tensors, np.ndarray]:
    integers, zeros, scales, _ = drawn(bits)
    groups, scales = np.arange(IN) // SIZE, scales.astype(ml_dtypes.bfloat16)
    tensors = {
        "x.weight_packed": words(integers.T, bits), "x.weight_shape": np.array([OUT, IN]),
        "x.weight_scale": scales.T.copy(),
    }  # fmt: skip
    if has_zeros:
        tensors["x.weight_zero_point"] = words(zeros, bits).T.copy()
    offsets = zeros[groups] if has_zeros else 1 << bits - 1
    return tensors, (integers - offsets) * scales.astype(np.float32)[groups]


def plain(dtype: Any) -> tuple[Tensors, np.ndarray]:
    values = np.random.default_rng(1).integers(-100, 100, (IN, OUT)).astype(dtype)
    scales = drawn(4)[2][:1]
    return {"x.weight": values.T.copy(), "x.weight_scale": scales.T.copy()}, values.astype(np.float32) * scales


FORMATS: dict[str, Callable[[], tuple[Tensors, np.ndarray]]] = {
    "gptq-4": lambda: gptq(4), "gptq-8": lambda: gptq(8), "awq": awq,
    "pack-quantized-4": lambda: compressed(4, False), "pack-quantized-4-zeros": lambda: compressed(4, True),
    "pack-quantized-8-zeros": lambda: compressed(8, True), "int-quantized": lambda: plain(np.int8),
    "float-quantized": lambda: plain(ml_dtypes.float8_e4m3fn),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_is_the_formats_and_every_part_the_wholes(name: str, tmp_path: Path) -> None:
    tensors, expected = FORMATS[name]()
    save_file(tensors | {"other": np.ones(3, np.float32)}, tmp_path / WEIGHTS)
    source = PackedIntegers(SafetensorsReader(tmp_path))
    assert source.shapes == {"x.weight": (OUT, IN), "other": (3,)}
    assert source.dtype("x.weight") in (np.float16, ml_dtypes.bfloat16) and source.dtype("other") == np.float32
    whole = source.read("x.weight", full_index((OUT, IN)))
    assert whole.dtype == np.float32 and np.array_equal(whole, expected.T.astype(np.float32))
    for part in ((slice(3, 14), slice(5, 27)), (slice(9, 10), slice(0, 32)), (slice(0, 16), slice(7, 8))):
        assert np.array_equal(source.read("x.weight", part), whole[part])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x.qzeros": None}, r"x: quantised without x\.qzeros; copy all of the files again"),
        ({"x.qzeros": np.zeros((GROUPS, 3), np.int32)}, r"neither GPTQ of 4 or 8 bits nor AWQ of 4; use the model in"),
        ({"x.scales": np.zeros((5, OUT), np.float16)}, r"x: integers .* are neither GPTQ"),
        ({"x.qweight": np.zeros((7, 7), np.int32)}, r"x: integers \(7, 7\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Tensors, message: str, tmp_path: Path) -> None:
    tensors = {name: x for name, x in (gptq(4)[0] | change).items() if x is not None}
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(WeightsError, match=message):
        PackedIntegers(SafetensorsReader(tmp_path))


def quantised_llama(folder: Path) -> Tensors:
    """Writes a published Llama whose matrices are AWQ's; returns what they stand for."""
    config = MODELS["llama"].model_copy(update={"vocab_size": 261})
    save_weights(config, random_params(config), folder)
    ByteTokenizer().save(folder)
    tensors = load_file(folder / WEIGHTS)
    expected = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        draw = np.random.default_rng(len(tensors))
        integers, zeros = draw.integers(0, 16, (inputs, outputs)), draw.integers(0, 16, (inputs // 8, outputs))
        scales = draw.uniform(0.01, 0.1, zeros.shape).astype(np.float16)
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.qweight"] = words(integers, 4, AWQ_COLUMNS)
        tensors[f"{stem}.qzeros"], tensors[f"{stem}.scales"] = words(zeros, 4, AWQ_COLUMNS), scales
        groups = np.arange(inputs) // 8
        expected[name] = ((integers - zeros[groups]) * scales.astype(np.float32)[groups]).T
    save_file(tensors, folder / WEIGHTS)
    return expected


def with_quantisation(folder: Path, **config: Any) -> Path:
    tree = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(tree | {"quantization_config": config}))
    return folder


def test_a_quantised_model_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    expected = quantised_llama(folder)
    with_quantisation(folder, quant_method="awq", bits=4, group_size=8, zero_point=True, version="gemm")
    import_safetensors(folder, tmp_path / "out", "float32")
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name].astype(np.float32)) for name in expected)
    assert "quantization_config" not in json.loads((tmp_path / "out" / CONFIG).read_text())
    import_safetensors(folder, tmp_path / "half")
    half = load_file(tmp_path / "half" / WEIGHTS)
    assert half["model.layers.0.mlp.up_proj.weight"].dtype == np.float16  # as its scales


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "awq", "version": "gemv"},
            r"quant_method='awq' and version='gemv' is not supported for 'llama'",
        ),
        ({"quant_method": "gptq", "bits": 3}, r"quant_method='gptq' and bits=3 is not supported"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, r"checkpoint_format='gptq_v2' is not"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, r"format='nvfp4-pack-quantized'"),
        ({"quant_method": "bitsandbytes"}, r"quant_method='bitsandbytes' is not supported for 'llama'; use the model"),
    ],
)
def test_another_way_of_packing_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_weights(MODELS["llama"], random_params(MODELS["llama"]), tmp_path)
    with pytest.raises(WeightsError, match=message):
        load_config(with_quantisation(tmp_path, **config))
