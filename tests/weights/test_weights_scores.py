"""Models that score texts: published as sequence classifiers with one label, read again bit for bit, never served."""

import json
from pathlib import Path

import chex
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_bundle
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.weights import imported_params
from lifecycle.testing.families import MODELS, random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.published import CONFIG, WeightsError, family_of, load_config, load_weights, save_weights

TIED = MODELS["llama"].model_copy(update={"vocab_size": ByteTokenizer().vocab_size, "tie_embeddings": True})


def scorer(config: ModelConfig) -> ModelConfig:
    return family_of(config).exported(config.model_copy(update={"has_score": True}))


@pytest.mark.parametrize("family", MODELS)
def test_every_familys_scorer_is_read_as_it_was_written(family: str, tmp_path: Path) -> None:
    config = scorer(MODELS[family])
    params = random_params(config)
    save_weights(config, params, tmp_path)
    said = json.loads((tmp_path / CONFIG).read_text())
    assert said["architectures"][0].endswith("ForSequenceClassification") and len(said["id2label"]) == 1
    found = load_config(tmp_path, may_score=True)
    assert found.has_score and found.tie_embeddings and "head" not in params
    chex.assert_trees_all_equal(load_weights(found, tmp_path), params)
    with pytest.raises(WeightsError, match="a reward model, which scores texts"):
        load_config(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Params]:
    params = random_params(scorer(TIED))
    save_weights(scorer(TIED), params, tmp_path)
    ByteTokenizer().save(tmp_path)
    return tmp_path, params


def test_a_stage_that_learns_a_score_may_go_on_with_one(bundle: tuple[Path, Params]) -> None:
    folder, params = bundle
    mesh, words = build_mesh(MeshConfig()), ByteTokenizer()
    found = imported_params(folder, TIED.model_copy(update={"has_score": True}), words, mesh)
    chex.assert_trees_all_equal(found, params)
    with pytest.raises(WeightsError, match="objective=reward_model"):
        imported_params(folder, TIED, words, mesh)
    untied = TIED.model_copy(update={"has_score": True, "tie_embeddings": False})
    with pytest.raises(ConfigError, match="tie_embeddings=True; set these"):
        imported_params(folder, untied, words, mesh)
    with pytest.raises(WeightsError, match="a reward model"):
        load_bundle(folder)


def test_a_classifier_of_several_labels_is_refused(bundle: tuple[Path, Params]) -> None:
    said = json.loads((bundle[0] / CONFIG).read_text())
    (bundle[0] / CONFIG).write_text(json.dumps(said | {"id2label": {"0": "no", "1": "yes"}}))
    with pytest.raises(WeightsError, match="LlamaForSequenceClassification with 2 labels"):
        load_config(bundle[0], may_score=True)
