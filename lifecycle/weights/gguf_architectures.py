"""llama.cpp's architectures: each family's settings as GGUF metadata, and its tensors' locations, both ways.

An architecture is a `Family` like those of `config.json`, with llama.cpp's keys and names. What llama.cpp takes for
granted in one (Gemma 3's period of layers, say) is an `Always`: a model that differs is refused, never written as
something else. What no key states follows from the tensors (`facts`). Llama's queries and keys are rotated as
neighbouring pairs, so their columns are permuted; all others rotate halves, as here. Sources: ggml's `docs/gguf.md`;
llama.cpp's `conversion/` (keys, permutation) and `src/models/` (what an architecture computes).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.family import Family
from lifecycle.weights.families.layout import Layout, Location, de_interleaved, locations
from lifecycle.weights.families.settings import Always, Both, Fields, Key, LayerKind, Setting, Tree
from lifecycle.weights.gguf_rope import FACTORS, Rope

EMBED, HEAD = "token_embd.weight", "output.weight"
VOCAB, TIED, BIASES = "vocab_size", "is tied", "has biases"  # the last two from the tensors only
REQUIRED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length",
            "attention.layer_norm_rms_epsilon")  # fmt: skip
EXPERTS = "expert_count"
BIAS_TENSORS = {"none": (), "qkv": ("attn_q",), "qkvo": ("attn_q", "attn_output")}


def facts(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What a file's tensors say of the model."""
    biased = [name for name in ("attn_q", "attn_output") if f"blk.0.{name}.bias" in shapes]
    biases = next((kind for kind, names in BIAS_TENSORS.items() if list(names) == biased), "unknown")
    rows = {VOCAB: shapes[EMBED][0]} if EMBED in shapes else {}
    return {TIED: HEAD not in shapes, BIASES: biases, **rows}


def _queries(config: ModelConfig) -> np.ndarray:
    return de_interleaved(config.num_heads, config.head_dim, 0, config.head_dim)


def _keys(config: ModelConfig) -> np.ndarray:
    return de_interleaved(config.num_kv_heads, config.head_dim, 0, config.head_dim)


TRUNK = {"embed": Location(EMBED), "norm.scale": Location("output_norm.weight"), "head": Location(HEAD)}
BLOCK = "blk.{layer}."
VECTORS = {
    "attention_norm.scale": "attn_norm.weight", "attention_post_norm.scale": "post_attention_norm.weight",
    "feed_forward_norm.scale": "ffn_norm.weight", "feed_forward_post_norm.scale": "post_ffw_norm.weight",
    "attention.q_norm.scale": "attn_q_norm.weight", "attention.k_norm.scale": "attn_k_norm.weight",
    "attention.q_bias": "attn_q.bias", "attention.k_bias": "attn_k.bias", "attention.v_bias": "attn_v.bias",
    "attention.o_bias": "attn_output.bias", "attention.sinks": "attn_sinks.weight",
    "feed_forward.router_bias": "ffn_gate_inp.bias", "feed_forward.experts.gate_bias": "ffn_gate_exps.bias",
    "feed_forward.experts.up_bias": "ffn_up_exps.bias", "feed_forward.experts.down_bias": "ffn_down_exps.bias",
}  # fmt: skip
MATRICES = {
    "attention.q": "attn_q.weight", "attention.k": "attn_k.weight", "attention.v": "attn_v.weight",
    "attention.o": "attn_output.weight", "feed_forward.gate": "ffn_gate.weight", "feed_forward.up": "ffn_up.weight",
    "feed_forward.down": "ffn_down.weight", "feed_forward.router": "ffn_gate_inp.weight",
    "feed_forward.experts.gate": "ffn_gate_exps.weight", "feed_forward.experts.up": "ffn_up_exps.weight",
    "feed_forward.experts.down": "ffn_down_exps.weight",
}  # fmt: skip
HALVES = dict(locations(BLOCK, VECTORS, transposed=False)) | dict(locations(BLOCK, MATRICES, transposed=True))
PAIRS = HALVES | {
    "attention.q": Location(BLOCK + "attn_q.weight", True, _queries),
    "attention.k": Location(BLOCK + "attn_k.weight", True, _keys),
    "attention.q_bias": Location(BLOCK + "attn_q.bias", False, _queries),
    "attention.k_bias": Location(BLOCK + "attn_k.bias", False, _keys),
}


def _read_head_dim(tree: Tree) -> Fields:
    return {"head_dim": tree.get("attention.key_length", tree["embedding_length"] // tree["attention.head_count"])}


def _write_head_dim(config: ModelConfig) -> dict[str, Any]:
    return dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), config.head_dim)


def _large_model_scale(num_layers: int) -> Both:
    """Gemma's scale of scores: llama.cpp takes that of the largest model for every one with as many layers."""

    def read(tree: Tree) -> Fields:
        is_large = tree["block_count"] == num_layers
        dim = tree["embedding_length"] // tree["attention.head_count"]
        return {"attention_scale": dim**-0.5 if is_large else None}

    return Both(read, lambda config: {})


SIZES: tuple[Setting, ...] = (
    Key("vocab_size", VOCAB),
    Key("d_model", "embedding_length"),
    Key("num_layers", "block_count"),
    Key("num_heads", "attention.head_count"),
    Key("num_kv_heads", "attention.head_count_kv", default=lambda tree: tree["attention.head_count"]),
    Key("max_seq_len", "context_length"),
    Key("norm_eps", "attention.layer_norm_rms_epsilon"),
    Both(_read_head_dim, _write_head_dim),
)
D_FF = Key("d_ff", "feed_forward_length")
TIE, BIAS, WINDOW = (
    Key("tie_embeddings", TIED),
    Key("attention_bias", BIASES),
    Key("window", "attention.sliding_window"),
)
UNTIED = Always("tie_embeddings", False)  # llama.cpp wants a head
MOE = (Key("moe.num_experts", EXPERTS), Key("moe.experts_per_token", "expert_used_count"))
EXPERT_D_FF = Key("moe.d_ff", "expert_feed_forward_length")
GEMMA = (
    Always("tie_embeddings", True), Always("activation", "gelu"), Always("norm_position", "sandwich"),
    Always("norm_offset", 1.0), Always("use_embed_scale", True), WINDOW,
)  # fmt: skip


def _local(period: int) -> Always:
    pattern: tuple[LayerKind, ...] = ("local",) * (period - 1) + ("global",)
    return Always("layer_pattern", pattern)


def _architecture(name: str, architecture: str, *settings: Setting, layer: Mapping[str, Location] = HALVES) -> Family:
    return Family(
        name=name, architecture=architecture, settings=(*SIZES, *settings), layout=Layout(TRUNK, layer),
        ignores=lambda config, tensor: tensor == FACTORS, where="GGUF metadata",
    )  # fmt: skip


# By our family. Of those with the same architecture and kind of feed-forward, a file is read as the first.
ARCHITECTURES: dict[str, Family] = {
    table.name: table
    for table in (
        _architecture("llama", "llama", D_FF, TIE, BIAS, Rope(), layer=PAIRS),
        _architecture("mistral", "llama", D_FF, TIE, BIAS, Rope(), layer=PAIRS),
        _architecture(
            "mixtral", "llama", D_FF, Key("moe.d_ff", "feed_forward_length"), TIE, Rope(), *MOE, layer=PAIRS
        ),
        _architecture(
            "smollm3", "smollm3", D_FF, TIE, BIAS, Rope(), Always("layer_pattern", ("global",) * 3 + ("nope",)),
            layer=PAIRS,
        ),
        _architecture("qwen2", "qwen2", D_FF, TIE, Always("attention_bias", "qkv"), Rope()),
        _architecture("qwen3", "qwen3", D_FF, TIE, Always("qk_norm", "head"), Rope()),
        _architecture("qwen3_moe", "qwen3moe", D_FF, TIE, Always("qk_norm", "head"), Rope(), *MOE, EXPERT_D_FF),
        _architecture(
            "gemma2", "gemma2", D_FF, *GEMMA, _local(2), Rope(), _large_model_scale(46),
            Key("attention_soft_cap", "attn_logit_softcapping", default=50.0),
            Key("logits_soft_cap", "final_logit_softcapping", default=30.0),
        ),
        _architecture(
            "gemma3_text", "gemma3", D_FF, *GEMMA, _local(6), Rope(), _large_model_scale(62),
            Always("qk_norm", "head"), Always("local_rope_theta", 10_000.0),
        ),
        _architecture(
            "olmo2", "olmo2", D_FF, UNTIED, Always("norm_position", "post"), Always("qk_norm", "projection"), Rope()
        ),
        _architecture(
            "gpt_oss", "gpt-oss", D_FF, UNTIED, WINDOW, _local(2), Always("attention_bias", "qkvo"),
            Always("use_sinks", True), Always("activation", "clamped"), Always("moe.use_bias", True), *MOE, EXPERT_D_FF,
            Rope(truncates=False),
            layer=HALVES | {"feed_forward_norm.scale": Location(BLOCK + "post_attention_norm.weight")},
        ),
    )
}  # fmt: skip


def architecture_of(architecture: str, has_experts: bool) -> Family | None:
    """The table for a file with this architecture; None for one that is not here."""
    fitting = (
        table
        for table in ARCHITECTURES.values()
        if table.architecture == architecture and any(setting is MOE[0] for setting in table.settings) == has_experts
    )
    return next(fitting, None)
