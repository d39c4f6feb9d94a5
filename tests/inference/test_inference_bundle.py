"""Bundles: what was saved answers the same, and what does not fit is refused by name."""

import json
from pathlib import Path

import chex
import jax
import pytest

from lifecycle.core.artifact import ArtifactError, Draft, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.weights import is_stacked, layer
from lifecycle.model.config import WeightFormat
from lifecycle.model.params import layers_apart
from lifecycle.parallel.mesh import make_mesh
from lifecycle.text.interface import TokenizerError
from lifecycle.weights.published import WeightsError, save_weights


def save(model: Model, folder: Path, **generation: object) -> Path:
    save_weights(model.config, model.params, folder)
    model.tokenizer.save(folder)
    model.template.save(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.slow
def test_a_loaded_bundle_answers_as_the_model_that_was_saved(model: Model, tmp_path: Path) -> None:
    loaded = load_bundle(str(save(model, tmp_path, temperature=0.5, top_k=9, eos_token_id=[7, 257])))
    assert loaded.config == model.config
    assert (loaded.defaults.temperature, loaded.defaults.top_k) == (0.5, 9)
    assert loaded.stop_ids == (model.tokenizer.eos_id, model.tokenizer.special_ids["<|im_end|>"], 7)
    greedy = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
    assert generate(loaded, [[65]], greedy, 2) == generate(model, [[65]], greedy, 2)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("is_on_mesh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_may_be_loaded_one_by_one(
    model: Model, tmp_path: Path, weights: WeightFormat | None, is_on_mesh: bool
) -> None:
    """As an engine makes them of stacks, on the same devices."""
    save(model, tmp_path)
    mesh = make_mesh(fsdp=2) if is_on_mesh else None
    stacked, apart = (load_bundle(tmp_path, mesh, weights, is_apart=is_apart).params for is_apart in (False, True))
    expected = layers_apart(model.config, stacked, layer)
    chex.assert_trees_all_equal(apart, expected)
    assert jax.tree.map(lambda x: x.sharding, apart) == jax.tree.map(lambda x: x.sharding, expected)
    assert is_stacked(stacked) and not is_stacked(apart)


def test_the_version_is_a_hash_of_the_content(model: Model, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, temperature in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()
        save(model, folder, temperature=temperature)
    versions = [load_bundle(folder).version for folder in folders]
    assert versions[0] == versions[1] != versions[2]


def test_a_file_that_changed_after_the_manifest_is_refused(model: Model, tmp_path: Path) -> None:
    draft = Draft(tmp_path, "export", {}, {})
    save(model, draft.open())
    bundle = draft.commit({}).path
    assert load_bundle(bundle).version == open_artifact(bundle).content_hash
    (bundle / "chat_template.jinja.bak").write_text("not listed")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja\.bak is not in its manifest"):
        load_bundle(bundle)
    (bundle / "chat_template.jinja.bak").unlink()
    weights = bytearray((bundle / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bundle / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors changed after it was finished"):
        load_bundle(bundle)


def test_do_sample_false_means_greedy(model: Model, tmp_path: Path) -> None:
    assert load_bundle(save(model, tmp_path, temperature=0.7, do_sample=False)).defaults.temperature == 0


def test_what_does_not_fit_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path, top_p=3)
    with pytest.raises(ConfigError, match=r"generation_config\.json[\s\S]*top_p"):
        load_bundle(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: not valid JSON"):
        load_bundle(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(TokenizerError, match=r"261 ids, model\.vocab_size=100: .* no row for 'd' \(id 100\); use the"):
        load_bundle(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_bundle(tmp_path)
