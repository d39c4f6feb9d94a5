"""A tiny model of each family, with every option that the family has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array
from lifecycle.model.config import MlaConfig, ModelConfig, MoeConfig, RopeScaling
from lifecycle.model.params import Params, abstract_params

LLAMA = ModelConfig(
    vocab_size=96, d_model=32, d_ff=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, max_seq_len=64,
    rope_theta=300_000.0, norm_eps=1e-5,
)  # fmt: skip
LLAMA3_SCALING = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=32)
YARN = RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=4096, truncate=False)


def like_llama(**changes: Any) -> ModelConfig:
    """The tiny Llama's config with these fields changed."""
    return ModelConfig.model_validate(LLAMA.model_dump() | changes)


GEMMA: dict[str, Any] = {
    "norm_position": "sandwich", "norm_offset": 1.0, "use_embed_scale": True, "activation": "gelu",
    "tie_embeddings": True, "window": 7, "attention_scale": 24**-0.5,
}  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "llama3": like_llama(rope_scaling=LLAMA3_SCALING, tie_embeddings=True, attention_bias="qkvo"),
    "smollm3": like_llama(family="smollm3", layer_pattern=("global", "nope"), tie_embeddings=True),
    "mistral": like_llama(family="mistral", layer_pattern=("local",), window=5),
    "qwen2": like_llama(
        family="qwen2", attention_bias="qkv", layer_pattern=("global", "local", "local"), window=9,
        rope_scaling=RopeScaling(kind="linear", factor=2.0),
    ),
    "qwen3": like_llama(family="qwen3", qk_norm="head", tie_embeddings=True, head_dim=12, num_kv_heads=1),
    "qwen3_moe": like_llama(
        family="qwen3_moe", qk_norm="head",
        moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=16, first_dense_layers=1),
    ),
    "gemma2": like_llama(
        family="gemma2", layer_pattern=("local", "global"), attention_soft_cap=50.0, logits_soft_cap=30.0, **GEMMA
    ),
    "gemma3_text": like_llama(
        family="gemma3_text", layer_pattern=("local", "local", "global"), qk_norm="head", local_rope_theta=10_000.0,
        rope_scaling=RopeScaling(kind="linear", factor=8.0), **GEMMA,
    ),
    "olmo2": like_llama(family="olmo2", norm_position="post", qk_norm="projection"),
    "mixtral": like_llama(family="mixtral", moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=48)),
    "deepseek_v3": like_llama(
        family="deepseek_v3", num_kv_heads=4, head_dim=10,
        mla=MlaConfig(q_lora_rank=12, kv_lora_rank=8, nope_head_dim=6, rope_head_dim=4, v_head_dim=5),
        moe=MoeConfig(
            num_experts=4, experts_per_token=2, d_ff=16, num_shared_experts=2, first_dense_layers=1, score="sigmoid",
            routed_scale=2.5, num_groups=2, groups_per_token=1, use_selection_bias=True,
        ),
        rope_scaling=RopeScaling(kind="yarn", factor=40.0, original_max_seq_len=64, mscale=1.0, mscale_all_dim=1.0),
        num_mtp_modules=1,
    ),
    "gpt_oss": like_llama(
        family="gpt_oss", layer_pattern=("local", "global"), window=6, attention_bias="qkvo", use_sinks=True,
        activation="clamped", moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=48, use_bias=True),
        rope_scaling=YARN,
    ),
}  # fmt: skip


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Random parameters, without compiling anything: norm scales around 1, all others around 0."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.1 * rng.standard_normal(shape.shape, np.float32))

    return jax.tree.map_with_path(draw, abstract_params(config))
