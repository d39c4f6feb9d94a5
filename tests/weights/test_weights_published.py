"""Weights in and out: bit-equal in every family, shard by shard, in one file or many, and every misfit named."""

import json
from pathlib import Path
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_in_use, logical_axes, params_in_use
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.testing.families import LLAMA, MODELS, random_params
from lifecycle.weights.published import (
    CONFIG,
    INDEX,
    WEIGHTS,
    WeightsError,
    held_config,
    load_config,
    load_weights,
    save_weights,
)
from lifecycle.weights.safetensors_files import LARGEST_FILE_BYTES, SafetensorsReader
from tests.measuring import measured


@pytest.fixture(scope="module", params=MODELS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def params(config: ModelConfig) -> Params:
    return random_params(config)


@pytest.fixture(scope="module")
def saved(config: ModelConfig, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(config.family)
    save_weights(config, params, folder, bos_token_id=1)
    return folder


@pytest.fixture(scope="module")
def llama_params() -> Params:
    return random_params(LLAMA)


@pytest.fixture
def llama(llama_params: Params, tmp_path: Path) -> Path:
    save_weights(LLAMA, llama_params, tmp_path)
    return tmp_path


def assert_same(left: Params, right: Params) -> None:
    chex.assert_trees_all_equal(left, right, strict=True)


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_what_is_saved_is_loaded_bit_by_bit(config: ModelConfig, params: Params, saved: Path) -> None:
    assert load_config(saved) == config
    assert_same(load_weights(config, saved), params)
    assert_same(load_weights(config, saved / WEIGHTS), params)


def test_every_device_gets_its_shard(config: ModelConfig, params: Params, saved: Path) -> None:
    """Cut over rows, columns and experts, whole on some axes; each shard is the part of the whole."""
    sizes = MeshConfig(fsdp=2, expert=2, tensor=2) if config.moe else MeshConfig(replica=2, fsdp=2, tensor=2)
    if config.num_kv_heads == 1:
        sizes = MeshConfig(replica=4, fsdp=2)
    shardings = tree_shardings(build_mesh(sizes), logical_axes(config))
    loaded = load_weights(config, saved, shardings)
    assert_same(loaded, params)
    for leaf, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding and len(leaf.addressable_shards) == 8
    assert loaded["embed"].addressable_shards[0].data.shape < loaded["embed"].shape


def test_the_same_weights_give_the_same_bytes(config: ModelConfig, params: Params, saved: Path, tmp_path: Path) -> None:
    save_weights(config, params, tmp_path, bos_token_id=1)
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_other_tools_read_what_is_written(config: ModelConfig, saved: Path) -> None:
    ours = SafetensorsReader(saved)
    with safe_open(saved / WEIGHTS, framework="np") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(ours.shapes)
        assert all(tuple(file.get_slice(name).get_shape()) == shape for name, shape in ours.shapes.items())


def test_large_models_are_cut_into_files_with_an_index(llama_params: Params, tmp_path: Path) -> None:
    save_weights(LLAMA, llama_params, tmp_path, largest_file_bytes=30_000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    sizes = {file: sum(x.nbytes for x in load_file(tmp_path / file).values()) for file in files}
    assert max(sizes.values()) <= 30_000 and sum(sizes.values()) == index["metadata"]["total_size"]
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert_same(load_weights(LLAMA, tmp_path), llama_params)
    (tmp_path / INDEX).unlink()  # several files without an index
    assert_same(load_weights(LLAMA, tmp_path), llama_params)
    save_weights(LLAMA, llama_params, tmp_path)  # one file: nothing of the others is left
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    assert LARGEST_FILE_BYTES == 5_000_000_000


def test_a_failed_write_leaves_no_file_with_a_final_name(llama_params: Params, tmp_path: Path) -> None:
    broken = {**llama_params, "norm": {"scale": np.zeros(3, np.float32)}}
    with pytest.raises(AssertionError, match=r"norm\.scale: \(3,\) in \(32,\)"):
        save_weights(LLAMA, broken, tmp_path)
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / CONFIG).exists()


def test_a_write_that_is_stopped_between_two_files_is_told_from_a_whole_one(
    llama_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    def stop_at_the_third(path: Path, name: Path) -> None:
        if name.suffix == ".safetensors":
            given.append(name)
            if len(given) == 3:
                raise KeyboardInterrupt
        path.rename(name)

    monkeypatch.setattr(Path, "replace", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        save_weights(LLAMA, llama_params, tmp_path, largest_file_bytes=30_000)
    with pytest.raises(WeightsError, match=rf"names missing files: {given[2].name}.*; copy them too"):
        SafetensorsReader(tmp_path)
    monkeypatch.undo()
    save_weights(LLAMA, llama_params, tmp_path, largest_file_bytes=30_000)  # the next write clears what was left
    assert_same(load_weights(LLAMA, tmp_path), llama_params)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_written_and_read(llama_params: Params, tmp_path: Path, dtype: Any) -> None:
    save_weights(LLAMA, llama_params, tmp_path, dtype=dtype)
    assert json.loads((tmp_path / CONFIG).read_text())["torch_dtype"] == np.dtype(dtype).name
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(dtype), llama_params)
    assert_same(load_weights(LLAMA, tmp_path, like=rounded), rounded)
    assert_same(load_weights(LLAMA, tmp_path), jax.tree.map(lambda x: x.astype(np.float32), rounded))


def test_a_selection_bias_stays_float32(tmp_path: Path) -> None:
    config = MODELS["deepseek_v3"]
    params = random_params(config)
    save_weights(config, params, tmp_path, dtype=ml_dtypes.bfloat16)
    loaded = load_weights(config, tmp_path)
    (name,) = [stack for stack in loaded["blocks"] if "selection_bias" in loaded["blocks"][stack]["feed_forward"]]
    one, other = (tree["blocks"][name]["feed_forward"]["selection_bias"] for tree in (loaded, params))
    assert np.array_equal(one, other)
    np.testing.assert_array_equal(loaded["embed"], np.asarray(params["embed"]).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v3", "gpt_oss"])
def test_weights_are_loaded_as_they_are_used(name: str, tmp_path: Path) -> None:
    """Straight into the dtypes and shardings of use: what casting the trained parameters gives, bit by bit."""
    config = MODELS[name].model_copy(update={"compute_dtype": "bfloat16"})
    params = random_params(config)
    save_weights(config, params, tmp_path)
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=2))
    shardings = tree_shardings(mesh, logical_axes(config))
    expected = params_in_use(config, params)
    for found in (load_weights(config, tmp_path, like=abstract_in_use(config)),
                  load_weights(config, tmp_path, shardings, like=abstract_in_use(config))):  # fmt: skip
        assert_same(found, expected)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings


def test_every_misfit_of_the_weights_is_listed_at_once(llama: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((3, 4), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)

    rewrite(llama, spoil)
    with pytest.raises(WeightsError) as caught:
        load_weights(LLAMA, llama)
    text = str(caught.value)
    assert "missing model.layers.1.self_attn.q_proj.weight" in text
    assert "model.layers.2.mlp.up_proj.weight: shape (3, 4), the config says (48, 32)" in text
    assert "unknown model.layers.3.mlp.up_proj.weight" in text and text.count("\n") == 4
    assert "the weights hold 4 layers, the config says 3; use the config.json and all weight files of one model" in text


def test_a_config_that_contradicts_the_weights_is_told_where(llama: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(LLAMA.model_copy(update={"vocab_size": 80, "num_layers": 2}), llama)
    text = str(caught.value)
    assert "model.embed_tokens.weight: shape (96, 32), the config says (80, 32)" in text
    assert "unknown model.layers.2.input_layernorm.weight" in text and "hold 3 layers, the config says 2" in text
    with pytest.raises(WeightsError, match=r"'llama' has no tensor for .*attention\.k_norm\.scale, blocks"):
        load_weights(LLAMA.model_copy(update={"qk_norm": "head"}), llama)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(llama: Path) -> None:
    tied = LLAMA.model_copy(update={"tie_embeddings": True})
    with pytest.raises(WeightsError, match=r"lm_head\.weight is not model\.embed_tokens\.weight.*tie_word_embeddings"):
        load_weights(tied, llama)
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert "head" not in load_weights(tied, llama)


def test_buffers_of_published_files_are_passed_over(tmp_path: Path) -> None:
    params = random_params(LLAMA)
    save_weights(LLAMA, params, tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    assert_same(load_weights(LLAMA, tmp_path), params)


def test_prediction_modules_are_read_or_passed_over(tmp_path: Path) -> None:
    config = MODELS["deepseek_v3"]
    params = random_params(config)
    save_weights(config, params, tmp_path)
    trunk = {name: array for name, array in params.items() if name != "mtp"}
    assert_same(load_weights(config.trunk, tmp_path), trunk)
    copies = {"model.layers.3.embed_tokens.weight": "embed", "model.layers.3.shared_head.head.weight": "head"}
    tensors = load_file(tmp_path / WEIGHTS)
    assert all(np.array_equal(tensors[name], params[array]) for name, array in copies.items())

    def drop(prefix: str) -> None:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        save_file(kept, tmp_path / WEIGHTS)

    drop("model.layers.3.embed_tokens")  # not every file repeats it
    assert_same(load_weights(config, tmp_path), params)
    drop("model.layers.3.")  # what transformers writes after training: the key, without the module
    assert load_config(tmp_path) == config and held_config(config, SafetensorsReader(tmp_path)) == config.trunk
    assert_same(load_weights(config.trunk, tmp_path), trunk)
    with pytest.raises(WeightsError, match=r"missing model\.layers\.3\.enorm\.weight"):
        load_weights(config, tmp_path)
    save_file(tensors | {"model.layers.3.shared_head.head.weight": tensors["lm_head.weight"] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(
        WeightsError, match=r"shared_head\.head\.weight is not lm_head\.weight, which a prediction module"
    ):
        load_weights(config, tmp_path)


def test_the_text_model_of_a_model_with_images_is_read(tmp_path: Path) -> None:
    """Gemma 3's larger models: the text model's config and tensors lie among those of the vision tower."""
    config = MODELS["gemma3_text"]
    params = random_params(config)
    save_weights(config, params, tmp_path)
    wrapped = {"model_type": "gemma3", "text_config": json.loads((tmp_path / CONFIG).read_text()), "vision_config": {}}
    (tmp_path / CONFIG).write_text(json.dumps(wrapped))
    tensors = {"language_model." + name: tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    image = {"vision_tower.embed.weight": np.zeros(3, np.float32), "multi_modal_projector.weight": np.zeros(3)}
    save_file({**tensors, **{name: x.astype(np.float32) for name, x in image.items()}}, tmp_path / WEIGHTS)
    assert load_config(tmp_path) == config
    assert_same(load_weights(config, tmp_path), params)
    save_file({**tensors, "audio_tower.weight": np.zeros(3, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(WeightsError, match=r"unknown audio_tower\.weight"):
        load_weights(config, tmp_path)


def test_missing_and_cut_files_are_named(llama: Path) -> None:
    path = llama / WEIGHTS
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:3], whole + b"\0", whole[:8] + b"x" * 8 + whole[16:]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"model\.safetensors: not a complete safetensors file .* copy it again"):
            load_weights(LLAMA, llama)
    path.unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors here"):
        load_weights(LLAMA, llama)
    (llama / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle, which may run code: convert it"):
        load_weights(LLAMA, llama)
    with pytest.raises(WeightsError, match=r"nowhere: no such file or folder"):
        load_weights(LLAMA, llama / "nowhere")


def test_an_index_must_fit_its_files(llama_params: Params, tmp_path: Path) -> None:
    save_weights(LLAMA, llama_params, tmp_path, largest_file_bytes=30_000)
    index = json.loads((tmp_path / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    moved = index["weight_map"] | {name: max(index["weight_map"].values())}
    (tmp_path / INDEX).write_text(json.dumps(index | {"weight_map": moved}))
    with pytest.raises(WeightsError, match=rf"does not fit its files:\n  {name} is not in "):
        load_weights(LLAMA, tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {name: "../" + file}}))
    with pytest.raises(WeightsError, match=r"is not the name of a safetensors file in the same folder"):
        load_weights(LLAMA, tmp_path)
    (tmp_path / INDEX).write_text(json.dumps(index))
    (tmp_path / file).unlink()
    with pytest.raises(WeightsError, match=rf"names missing files: {file}"):
        load_weights(LLAMA, tmp_path)
    for content in ("{", "[]", '{"weight_map": []}', '{"weight_map": {"norm": 3}}'):
        (tmp_path / INDEX).write_text(content)
        with pytest.raises(WeightsError, match=r"not an index of tensors .* copy it again"):
            load_weights(LLAMA, tmp_path)


def test_quantised_tensors_are_refused_by_dtype(llama: Path) -> None:
    rewrite(llama, lambda tensors: tensors.update({"model.norm.weight": np.zeros(32, np.int8)}))
    with pytest.raises(WeightsError, match=r"tensor model\.norm\.weight is of dtype int8 without scales; weights"):
        load_weights(LLAMA, llama)


def test_configs_that_cannot_be_read_are_named(llama: Path) -> None:
    whole = json.loads((llama / CONFIG).read_text())
    for content, message in (("{", "not valid JSON"), ("[]", "expected a mapping, got list")):
        (llama / CONFIG).write_text(content)
        with pytest.raises(WeightsError, match=rf"config\.json.*{message}"):
            load_config(llama)
    spoilt = json.dumps(whole | {"num_attention_heads": [4], "rope_scaling": "yarn", "layer_types": 3})
    (llama / CONFIG).write_text(spoilt)
    with pytest.raises(WeightsError) as caught:
        load_config(llama)
    assert "num_attention_heads=[4] is not a positive number; rope_scaling='yarn' is not a mapping" in str(caught.value)
    assert "layer_types=3 is not a list of names; use the config.json published" in str(caught.value)
    (llama / CONFIG).unlink()
    with pytest.raises(WeightsError, match=r"no config\.json here; give a bundle's folder"):
        load_config(llama)


@pytest.mark.long
def test_host_memory_is_bounded_by_a_tensor_and_a_shard(tmp_path: Path) -> None:
    """A checkpoint of 1.0 GB: each of four processes keeps its quarter, and one converts all of it."""
    figures = measured(Path(__file__).parent / "measure_weights.py", tmp_path)
    assert figures["checkpoint_bytes"] > 1.04e9
    assert max(figures["load_peak_bytes"]) < 0.9e9 and figures["import_peak_bytes"] < 1.2e9
