"""Makes each family's golden values with `transformers`: a tiny model, its tokens and its logits.

Run it in an environment of its own, never the project's (made with torch 2.13.0, transformers 5.24.0):

    python -m venv /tmp/parity && /tmp/parity/bin/pip install 'torch<=2.13.0' transformers safetensors
    /tmp/parity/bin/python tests/golden/make_family_golden.py [FOLDER]

Writes `NAME/` in `families/` beside itself, or in FOLDER: `config.json` as transformers saves it, `tensors.json`
(published names and shapes of the weights, which `family_weights.py` draws) and `expected.npz` with `tokens [B, T]`,
float32 `logits [B, T, V]` of eager attention, and `greedy [B, N]`, how the first `PROMPT` tokens go on. Before it
writes, it sees that transformers itself gives the same logits with padding at either end, and for both rows packed
into one.

Also `rotary.npz`: inverse frequencies and attention factors at the published settings of real models.
"""
# pyrefly: ignore-errors[missing-import]

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_weights import write_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FAMILIES_FOLDER = Path(__file__).parent / "families"
TELLS_NO_DOCUMENTS = ("gpt_oss",)  # its masks take no positions in this version, so they cannot restart
VOCAB, LENGTH, PROMPT, NEW, PADDING = 64, 24, 6, 10, 5

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 1,
    "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "beta_fast": 16.0, "beta_slow": 0.5,
}  # fmt: skip
LATENT = {
    "num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": 20, "kv_lora_rank": 16,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "n_shared_experts": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0,
    "rope_parameters": YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.0},
}  # fmt: skip

# What differs from SIZES. Patterns are repeated and leave a remainder; windows are shorter than the rows.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 8, "rms_norm_eps": 1e-5},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 6, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 7, "rms_norm_eps": 1e-5},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "head_dim": 8},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2", "num_hidden_layers": 5, "sliding_window": 7, "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0, "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 7, "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
        },
    },
    "olmo2": {"model_type": "olmo2", "head_dim": 8},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    },
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT},
    "deepseek_v3_direct": {  # queries without a latent, plain RoPE, no groups, weights as they come
        "model_type": "deepseek_v3", **LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
        "n_shared_experts": 1, "norm_topk_prob": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "num_hidden_layers": 3, "sliding_window": 7, "num_local_experts": 4,
        "num_experts_per_tok": 2, "rope_parameters": YARN_ROPE | {"truncate": False},
    },
}  # fmt: skip

# Published settings whose frequencies are kept as they are at full size.
ROTARY: dict[str, dict[str, Any]] = {
    "llama3_1": {"head_dim": 128, **LLAMA3_ROPE, "rope_theta": 500_000.0, "original_max_position_embeddings": 8192},
    "gemma3": {"head_dim": 256, "rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "deepseek_v3": {
        "head_dim": 64, "rope_type": "yarn", "factor": 40.0, "rope_theta": 10_000.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    },
    "gpt_oss": {
        "head_dim": 64, "rope_type": "yarn", "factor": 32.0, "rope_theta": 150_000.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
    },
}  # fmt: skip


def tiny_model(settings: dict[str, Any], out: Path) -> Any:
    """The family's model with drawn weights, read as transformers reads a published one; `out` gets its config and
    its tensors' shapes."""
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(SIZES | settings)), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        fresh.save_pretrained(folder)
        shutil.copy(Path(folder) / "config.json", out)
        with safe_open(Path(folder) / "model.safetensors", framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        (out / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
        write_model(out, Path(folder))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    assert not wrong, f"transformers does not read what it wrote: {wrong}"
    return model.eval()


def check_padding_and_packing(model: Any, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Padding at the start of row 0 and at the end of row 1; then both rows as documents of one row."""
    seen = torch.ones(2, LENGTH + PADDING, dtype=torch.long)
    padded = torch.zeros(2, LENGTH + PADDING, dtype=torch.long)
    padded[0, PADDING:], padded[1, :-PADDING] = tokens[0], tokens[1]
    seen[0, :PADDING] = seen[1, -PADDING:] = 0
    found = model(padded, attention_mask=seen).logits
    torch.testing.assert_close(found[0, PADDING:], logits[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1, :-PADDING], logits[1], atol=1e-4, rtol=0)
    if model.config.model_type in TELLS_NO_DOCUMENTS:
        return
    positions = torch.arange(LENGTH).repeat(2)[None]
    packed = model(tokens.reshape(1, -1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed.reshape(logits.shape), logits, atol=1e-4, rtol=0)


@torch.no_grad()
def save(settings: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = tiny_model(settings, out)
    tokens = torch.from_numpy(np.random.RandomState(0).randint(0, VOCAB, (2, LENGTH)))
    logits = model(tokens).logits
    check_padding_and_packing(model, tokens, logits)
    greedy = model.generate(tokens[:, :PROMPT], max_new_tokens=NEW, do_sample=False)[:, PROMPT:]
    arrays = {"tokens": tokens.int(), "logits": logits, "greedy": greedy.int()}
    np.savez_compressed(out / "expected.npz", allow_pickle=False, **{key: x.numpy() for key, x in arrays.items()})
    print(f"{out.name}: logits up to {logits.abs().max():.1f}, deviation {logits.std():.2f}")


def save_rotary(out: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, settings in ROTARY.items():
        rope = {key: value for key, value in settings.items() if key != "head_dim"}
        config = AutoConfig.for_model("llama", head_dim=settings["head_dim"], rope_parameters=rope)
        frequencies, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config)
        arrays[name] = np.append(frequencies.numpy(), np.float32(factor))
    np.savez_compressed(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FAMILIES_FOLDER
    for name, settings in FAMILIES.items():
        save(settings, folder / name)
    save_rotary(folder / "rotary.npz")
