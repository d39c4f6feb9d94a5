"""The shipped models have their published sizes, and their families can say them."""

from pathlib import Path

import pytest
import yaml

from lifecycle.core.config import validate
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_active_params, num_params
from lifecycle.weights.families import FAMILIES
from lifecycle.weights.published import config_from_hf, config_to_hf

FOLDER = Path(__file__).parents[2] / "configs/models"

# Elements of the published checkpoints' tensors, as public files quote them (model listings, loaders' logs). Gemma 3
# 27B: without its vision tower and projector. DeepSeek V3: the main model, less the selection biases of 58 layers,
# which are no weights that are trained: 671,026,419,200 - 58 * 256.
PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_1_405b": 405_853_388_800,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    "mistral_7b": 7_241_732_096,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_1b": 999_885_952,
    "gemma3_27b": 27_009_346_304,
    "olmo2_7b": 7_298_617_344,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "deepseek_v3": 671_026_404_352,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
}
# Billions of parameters that a token uses, as the technical reports say it; gpt-oss counts its embedding once.
ACTIVE = {"mixtral_8x7b": 12.9, "qwen3_30b_a3b": 3.3, "qwen3_235b_a22b": 22, "deepseek_v3": 37}
OF_TRAINING = {"balance_weight", "z_weight", "bias_rate"}
# balance_weight of the presets with experts: `router_aux_loss_coef` of the published config, whose loss is the same sum
# (E sum_e f_e p_e, f summing to experts_per_token; it pools the layers, ours is the mean over them). gpt-oss,
# DeepSeek: see their presets.
BALANCE = {
    "mixtral_8x7b": 0.02, "qwen3_30b_a3b": 0.001, "qwen3_235b_a22b": 0.001,
    "gpt_oss_20b": 0.0025, "gpt_oss_120b": 0.0025, "deepseek_v3": 0.0001 / 8 * 58,
}  # fmt: skip
PRESETS = sorted(FOLDER.glob("*.yaml"))


def preset(path: Path) -> ModelConfig:
    return validate(ModelConfig, yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_its_published_size_and_form(path: Path) -> None:
    config = preset(path)
    assert num_params(config) == PUBLISHED[path.stem]
    again, own = config_from_hf(config_to_hf(config)).model_dump(), config.model_dump()
    for tree in (again, own):  # how a router is trained is in no published config
        tree["moe"] = tree["moe"] and {name: value for name, value in tree["moe"].items() if name not in OF_TRAINING}
    assert again == own
    assert path.read_text(encoding="utf-8").startswith("# ") and "config.json of" in path.read_text(encoding="utf-8")


def test_every_preset_with_experts_evens_out_their_load() -> None:
    found = {path.stem: moe.balance_weight for path in PRESETS if (moe := preset(path).moe) is not None}
    assert found == pytest.approx(BALANCE, rel=1e-12)
    assert preset(FOLDER / "deepseek_v3.yaml").bias_rate == 0.001


def test_every_published_size_has_a_preset_and_every_family_one() -> None:
    assert {path.stem for path in PRESETS} == set(PUBLISHED)
    assert {preset(path).family for path in PRESETS} == set(FAMILIES)


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_a_token_uses_as_many_parameters_as_the_report_says(name: str, billions: float) -> None:
    assert num_active_params(preset(FOLDER / f"{name}.yaml")) / 1e9 == pytest.approx(billions, rel=0.02)
