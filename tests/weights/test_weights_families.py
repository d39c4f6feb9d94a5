"""Families: a config survives the way out and back, older and newer files say the same, and the rest is refused."""

from typing import Any

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig, MoeConfig, RopeScaling
from lifecycle.testing.families import LLAMA, LLAMA3_SCALING, MODELS, like_llama
from lifecycle.weights.arrays import array_shapes
from lifecycle.weights.families import FAMILIES
from lifecycle.weights.families.layout import published_tensors
from lifecycle.weights.published import WeightsError, config_from_hf, config_to_hf, family_of


@pytest.fixture(params=MODELS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


def test_every_family_has_a_model_here() -> None:
    assert {config.family for config in MODELS.values()} == set(FAMILIES)


def test_a_config_survives_the_way_out_and_back(config: ModelConfig) -> None:
    tree = config_to_hf(config, bos_token_id=1)
    assert tree["model_type"] == config.family and tree["bos_token_id"] == 1
    assert config_from_hf(tree) == config


def test_every_array_has_one_place(config: ModelConfig) -> None:
    shapes, layout = array_shapes(config), family_of(config).layout
    tensors = published_tensors(config, layout, shapes)
    own = (tensor for name, tensor in tensors.items() if name not in layout.copied(config))
    parts = [(part.array, part.expert) for tensor in own for part in tensor.parts]
    assert len(parts) == len(set(parts)) and {array for array, _ in parts} == set(shapes)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("mixtral", {"model.layers.2.block_sparse_moe.experts.3.w2.weight": (32, 48)}),
        ("qwen3_moe", {"model.layers.0.mlp.gate_proj.weight": (48, 32), "model.layers.1.mlp.gate.weight": (4, 32)}),
        ("gpt_oss", {"model.layers.0.mlp.experts.gate_up_proj": (4, 32, 96), "model.layers.1.self_attn.sinks": (4,)}),
        ("gemma2", {"model.layers.0.pre_feedforward_layernorm.weight": (32,)}),
        ("olmo2", {"model.layers.0.self_attn.k_norm.weight": (16,)}),
        (
            "deepseek_v3",
            {
                "model.layers.1.mlp.shared_experts.up_proj.weight": (32, 32),
                "model.layers.2.mlp.gate.e_score_correction_bias": (4,),
                "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (12, 32),
                "model.layers.0.self_attn.q_b_proj.weight": (40, 12),
                # the prediction module, as vLLM's models/deepseek_mtp.py reads it
                "model.layers.3.enorm.weight": (32,),
                "model.layers.3.hnorm.weight": (32,),
                "model.layers.3.eh_proj.weight": (32, 64),
                "model.layers.3.shared_head.norm.weight": (32,),
                "model.layers.3.shared_head.head.weight": (96, 32),
                "model.layers.3.embed_tokens.weight": (96, 32),
                "model.layers.3.mlp.experts.2.down_proj.weight": (32, 16),
                "model.layers.3.self_attn.kv_b_proj.weight": (44, 8),
            },
        ),
    ],
)
def test_names_and_shapes_are_the_published_ones(model: str, names: dict[str, tuple[int, ...]]) -> None:
    config = MODELS[model]
    tensors = published_tensors(config, family_of(config).layout, array_shapes(config))
    assert {name: tensors[name].shape for name in names} == names


def test_what_a_family_cannot_say_is_refused_with_the_fields() -> None:
    with pytest.raises(WeightsError, match=r"'llama' has no config key for qk_norm='head'; set model\.family"):
        config_to_hf(like_llama(qk_norm="head"))
    with pytest.raises(WeightsError, match=r"has no config key for layer_pattern=\('local', 'global'\), window=5"):
        config_to_hf(like_llama(layer_pattern=("local", "global"), window=5))
    with pytest.raises(WeightsError, match=r"'mixtral' has no config key for d_ff=40; set model\.family"):
        config_to_hf(MODELS["mixtral"].model_copy(update={"d_ff": 40}))
    with pytest.raises(WeightsError, match=r"'llama' has no config key for num_mtp_modules=1"):
        config_to_hf(like_llama(num_mtp_modules=1))
    assert family_of(LLAMA).exported(like_llama(num_mtp_modules=1)) == LLAMA
    assert family_of(MODELS["deepseek_v3"]).exported(MODELS["deepseek_v3"]).num_mtp_modules == 1
    with pytest.raises(WeightsError, match=r"'llama' has no model\.moe"):
        config_to_hf(like_llama(moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=8)))
    with pytest.raises(WeightsError, match=r"'gpt_oss' needs model\.moe"):
        config_to_hf(like_llama(family="gpt_oss"))


def test_what_is_not_of_the_model_is_left_out() -> None:
    moe = MoeConfig(num_experts=4, experts_per_token=2, d_ff=48, balance_weight=0.01)
    config = MODELS["mixtral"].model_copy(update={"moe": moe, "compute_dtype": "bfloat16"})
    assert config_from_hf(config_to_hf(config)) == MODELS["mixtral"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpt2", "'gpt2' is not a supported family: llama, "), ("lama", r"did you mean 'llama'\?"),
     ("olmo3", r"did you mean 'olmo2'\?"), (None, "model_type None")],
)  # fmt: skip
def test_an_unknown_family_is_told_the_nearest(name: str | None, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        config_from_hf(config_to_hf(LLAMA) | {"model_type": name})
    if name is not None:
        with pytest.raises(WeightsError, match=rf"model\.family .*{message}"):
            config_to_hf(like_llama(family=name))


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("llama", {"mlp_bias": True}, r"mlp_bias=True; only mlp_bias=False is supported"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act='gelu'; only hidden_act='silu' is supported"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope scaling 'dynamic' .* known kinds"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.5}}, r"attention_factor=1\.5"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"quant_method='fp8' is not supported for 'llama'"),
        ("llama", {"layer_types": ["full_attention"] * 2}, r"layer_types has 2 layers, num_hidden_layers=3"),
        ("llama", {"layer_types": ["linear_attention"] * 3}, r"layer type 'linear_attention'"),
        ("smollm3", {"use_sliding_window": True}, r"use_sliding_window=True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, r"use_bidirectional_attention=True"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, r"decoder_sparse_step=2"),
        ("qwen3_moe", {"mlp_only_layers": [2]}, r"mlp_only_layers=\[2\]"),
        ("deepseek_v3", {"scoring_func": "softmax"}, r"scoring_func='softmax'"),
        ("gpt_oss", {"swiglu_limit": 5.0}, r"swiglu_limit=5\.0"),
    ],
)  # fmt: skip
def test_what_this_decoder_does_not_compute_is_refused(model: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        config_from_hf(config_to_hf(MODELS[model]) | change)


def without(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}


# What each configuration class of transformers 5.24 has without arguments (`MistralConfig().to_dict()`): vocabulary,
# width, layers, heads, key-value heads, head size, inner width, positions, epsilon, window, theta.
CLASSES = {
    "llama": (32_000, 4096, 32, 32, 32, 128, 11_008, 2048, 1e-6, None, 1e4),
    "mistral": (32_000, 4096, 32, 32, 8, 128, 14_336, 131_072, 1e-6, 4096, 1e4),
    "mixtral": (32_000, 4096, 32, 32, 8, 128, 14_336, 131_072, 1e-5, None, 1e6),
    "gpt_oss": (201_088, 2880, 36, 64, 8, 64, 2880, 131_072, 1e-5, 128, 150_000.0),
    "qwen2": (151_936, 4096, 32, 32, 32, 128, 22_016, 32_768, 1e-6, None, 1e4),
    "qwen3": (151_936, 4096, 32, 32, 32, 128, 22_016, 32_768, 1e-6, None, 1e4),
    "qwen3_moe": (151_936, 2048, 24, 32, 4, 64, 6144, 32_768, 1e-6, None, 1e4),
    "gemma2": (256_000, 2304, 26, 8, 4, 256, 9216, 8192, 1e-6, 4096, 1e4),
    "gemma3_text": (262_208, 2304, 26, 8, 4, 256, 9216, 131_072, 1e-6, 4096, 1e6),
    "olmo2": (50_304, 4096, 32, 32, 32, 128, 11_008, 2048, 1e-5, None, 1e4),
    "smollm3": (128_256, 2048, 36, 16, 4, 128, 11_008, 32_768, 1e-6, None, 2e6),
    "deepseek_v3": (129_280, 7168, 61, 128, 128, 192, 18_432, 4096, 1e-6, None, 1e4),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_absent_key_has_the_value_of_the_published_class(name: str) -> None:
    config = config_from_hf({"model_type": name})
    found = (config.vocab_size, config.d_model, config.num_layers, config.num_heads, config.num_kv_heads,
             config.head_dim, config.d_ff, config.max_seq_len, config.norm_eps, config.window,
             config.rope_theta)  # fmt: skip
    assert found == CLASSES[name]
    experts = {"mixtral": (8, 2), "gpt_oss": (128, 4), "qwen3_moe": (128, 8), "deepseek_v3": (256, 8)}
    moe = config.moe
    assert (moe and (moe.num_experts, moe.experts_per_token)) == experts.get(name)


def test_absent_is_not_null() -> None:
    """Mistral 7B v0.1's window is the class's, v0.2 has null: no window. gpt-oss without a scaling is scaled."""
    mistral = without(config_to_hf(MODELS["mistral"]), "sliding_window", "layer_types")
    assert config_from_hf(mistral).window == 4096
    assert config_from_hf(mistral | {"sliding_window": None}).layer_pattern == ("global",)
    gpt_oss = without(config_to_hf(MODELS["gpt_oss"]), "rope_scaling")
    yarn = RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=4096, truncate=False)
    assert config_from_hf(gpt_oss).rope_scaling == yarn
    assert config_from_hf(gpt_oss | {"rope_scaling": None}).rope_scaling is None
    deepseek = config_from_hf({"model_type": "deepseek_v3"}).moe
    assert deepseek is not None and (deepseek.num_groups, deepseek.groups_per_token) == (8, 4)
    assert (deepseek.routed_scale, deepseek.first_dense_layers, deepseek.num_shared_experts) == (2.5, 3, 1)


def test_missing_keys_are_named_together() -> None:
    tree = config_to_hf(LLAMA) | {"rms_norm_eps": None, "head_dim": None, "intermediate_size": None}
    with pytest.raises(WeightsError, match=r"config\.json: missing rms_norm_eps, intermediate_size"):
        config_from_hf(tree)
    with pytest.raises(WeightsError, match=r"config\.json: hidden_size=None is not a positive number"):
        config_from_hf(tree | {"hidden_size": None})
    with pytest.raises(ConfigError, match=r"config\.json[\s\S]*num_heads=4 is not a multiple of num_kv_heads=3"):
        config_from_hf(config_to_hf(LLAMA) | {"num_key_value_heads": 3})


def test_customary_defaults_are_filled_in() -> None:
    tree = without(config_to_hf(LLAMA), "head_dim", "tie_word_embeddings", "rope_theta", "rope_scaling")
    theta = {"rope_theta": 300_000.0}
    assert config_from_hf(tree | {"rope_parameters": theta}) == LLAMA
    assert config_from_hf(tree | theta | {"head_dim": None, "rope_parameters": None}) == LLAMA
    assert config_from_hf(tree).rope_theta == 10_000.0
    assert config_from_hf(without(tree, "num_key_value_heads")).num_kv_heads == 4
    gemma = without(config_to_hf(MODELS["gemma2"]), "layer_types", "tie_word_embeddings", "attn_logit_softcapping")
    assert config_from_hf(gemma) == MODELS["gemma2"]
    assert config_from_hf(gemma | {"attn_logit_softcapping": None}).attention_soft_cap is None


def test_older_and_newer_forms_of_rope_scaling_say_the_same() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    tree = without(config_to_hf(MODELS["llama3"]), "rope_theta", "rope_scaling")
    old = {"rope_theta": 300_000.0, "rope_scaling": llama3 | {"rope_type": "llama3"}}
    new = {"rope_parameters": llama3 | {"rope_type": "llama3", "rope_theta": 300_000.0}}
    assert config_from_hf(tree | old) == config_from_hf(tree | new) == MODELS["llama3"]
    assert MODELS["llama3"].rope_scaling == LLAMA3_SCALING
    oldest = config_from_hf(config_to_hf(LLAMA) | {"rope_scaling": {"type": "linear", "factor": 4.0}})
    assert oldest.rope_scaling == RopeScaling(kind="linear", factor=4.0)


def test_gemma3_nests_its_two_thetas_in_newer_files() -> None:
    config = MODELS["gemma3_text"]
    tree = without(config_to_hf(config), "rope_theta", "rope_scaling", "rope_local_base_freq")
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 300_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    assert config_from_hf(tree | {"rope_parameters": nested}) == config
    nested["sliding_attention"]["rope_type"] = "linear"
    with pytest.raises(WeightsError, match="local layers"):
        config_from_hf(tree | {"rope_parameters": nested})


def test_layers_without_a_list_follow_the_family() -> None:
    qwen2 = without(config_to_hf(MODELS["qwen2"]), "layer_types") | {"max_window_layers": 1}
    assert config_from_hf(qwen2).layer_pattern == ("global", "local", "local")
    assert config_from_hf(qwen2 | {"use_sliding_window": False}).layer_pattern == ("global",)
    smollm3 = without(config_to_hf(MODELS["smollm3"]), "no_rope_layers") | {"num_hidden_layers": 8}
    assert config_from_hf(smollm3).layer_pattern == ("global", "global", "global", "nope")
    gemma3 = without(config_to_hf(MODELS["gemma3_text"]), "layer_types") | {"num_hidden_layers": 12}
    assert config_from_hf(gemma3).layer_pattern == (*["local"] * 5, "global")
    mistral = config_to_hf(MODELS["mistral"])
    assert config_from_hf(without(mistral, "layer_types")) == MODELS["mistral"]
    assert config_from_hf(without(mistral, "layer_types") | {"sliding_window": None}).layer_pattern == ("global",)
