"""Stages that start from a bundle: what they need, what decides their key, and bundles that do not fit the run."""

from pathlib import Path

import chex
import numpy as np
import pytest

from lifecycle.core.artifact import Draft
from lifecycle.core.config import ConfigError, load_config
from lifecycle.inference.defaults import GENERATION_FILE
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.weights import imported_params
from lifecycle.testing.families import MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.published import save_weights

DEBUG = Path(__file__).parents[2] / "configs/debug.yaml"
MODEL = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=64
)


def read(*overrides: str) -> RunConfig:
    return load_config(RunConfig, DEBUG, overrides)


def names(config: RunConfig, target: str) -> list[str]:
    return [stage.name for stage in needed(build_graph(config), (target,))]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_weights(MODEL, random_params(MODEL), folder)
    ByteTokenizer().save(folder)
    return folder


def test_a_stage_that_starts_from_a_bundle_does_not_need_the_one_before(bundle: Path) -> None:
    data = ["tagging", "documents", "tokenizer"]
    assert names(read(f"train.sft.from={bundle}"), "sft") == [*data, "tokens", "rows", "sft"]
    assert names(read(f"train.prefer.from={bundle}"), "prefer") == [*data, "rows", "prefer"]
    assert names(read(f"train.pretrain.from={bundle}"), "prefer") == names(read(), "prefer")


def test_the_bundles_content_decides_the_key_and_not_its_place(bundle: Path) -> None:
    def key(folder: Path) -> str:
        config = read(f"train.sft.from={folder}")
        stage = build_graph(config)["sft"]
        assert stage.bundles["bundle"].bundle == folder
        return Draft(config.folder, "sft", stage.settings(config), {}, {"bundle": folder}).key

    first = key(bundle)
    moved = bundle.rename(bundle.with_name("moved"))
    assert key(moved) == first
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert key(moved) != first
    with pytest.raises(ConfigError, match=r"sft\.from=.*bundle: no such folder; give a bundle"):
        key(bundle)


def test_an_exported_bundle_keeps_the_sampling_of_the_one_that_its_weights_go_back_to(bundle: Path) -> None:
    (bundle / GENERATION_FILE).write_text('{"temperature": 0.6}')
    settings = keys.export
    for stage in ("pretrain", "sft", "prefer"):
        assert settings(read(f"train.{stage}.from={bundle}"))["generation"]["temperature"] == 0.6
    assert settings(read())["generation"] == {"do_sample": False}
    assert settings(read(f"train.sft.from={bundle}", "export.sampling.top_p=0.9"))["generation"]["temperature"] == 1.0
    other = bundle.with_name("other")  # of two bundles, the later stage's
    other.mkdir()
    assert settings(read(f"train.sft.from={bundle}", f"train.prefer.from={other}"))["generation"] == {
        "do_sample": False
    }


def test_sampling_that_no_export_could_keep_is_told_before_the_training(bundle: Path) -> None:
    (bundle / GENERATION_FILE).write_text('{"top_p": 3}')
    with pytest.raises(ConfigError, match=r"generation_config\.json:\s+top_p: .*\(given: 3\)"):
        keys.training(read(f"train.pretrain.from={bundle}"), "pretrain")
    with pytest.raises(ConfigError, match=r"export\.sampling\.top_p: .*\(given: 3\)"):
        read("export.sampling.top_p=3")


def test_its_weights_are_laid_over_the_mesh(bundle: Path) -> None:
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=2))
    shorter = MODEL.model_copy(update={"max_seq_len": 32})
    params = imported_params(bundle, shorter, ByteTokenizer(), mesh)
    assert params["embed"].addressable_shards[0].data.shape == (132, 16)
    assert np.array_equal(params["embed"], random_params(MODEL)["embed"])


def test_another_model_or_vocabulary_is_refused(bundle: Path) -> None:
    mesh = build_mesh(MeshConfig())
    with pytest.raises(ConfigError, match=r"is another model: rope_theta=10000\.0; set these"):
        imported_params(bundle, MODEL.model_copy(update={"rope_theta": 5000.0}), ByteTokenizer(), mesh)
    other = ByteTokenizer()
    other.eos_id = other.bos_id
    with pytest.raises(ConfigError, match=r"trained with another tokenizer.*tokenizer\.path="):
        imported_params(bundle, MODEL, other, mesh)


def test_a_run_may_do_without_the_prediction_modules_of_a_bundle(tmp_path: Path) -> None:
    held = MODELS["deepseek_v3"].model_copy(update={"vocab_size": ByteTokenizer().vocab_size})
    params = random_params(held)
    save_weights(held, params, tmp_path)
    ByteTokenizer().save(tmp_path)
    found = imported_params(tmp_path, held.trunk, ByteTokenizer(), build_mesh(MeshConfig()))
    chex.assert_trees_all_equal(found, {name: part for name, part in params.items() if name != "mtp"})


def test_a_model_that_no_family_can_say_is_told_when_the_config_is_read() -> None:
    with pytest.raises(ConfigError, match=r"'qwen3' has no config key for qk_norm='projection'; set model\.family"):
        read("model.qk_norm=projection")
    with pytest.raises(ConfigError, match=r"model\.family 'qwen4' is not a supported family.*did you mean 'qwen3'\?"):
        read("model.family=qwen4")
