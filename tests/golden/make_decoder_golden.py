"""Makes the decoder's golden values with `transformers`: two tiny random models, their logits for fixed tokens.

Run it in an environment of its own, never the project's (made with torch 2.13.0, transformers 5.24.0):

    python -m venv /tmp/parity && /tmp/parity/bin/pip install 'torch<=2.13.0' transformers safetensors
    /tmp/parity/bin/python tests/golden/make_decoder_golden.py

Writes `llama/` (untied, grouped heads, a large rope_theta) and `qwen3/` (tied, normalised queries and keys, a head_dim
that is not d_model / num_heads) beside itself: `model.safetensors` and `config.json` as transformers saves them, and
`expected.npz` with `tokens [B, T]` and float32 `logits [B, T, V]` of eager attention.
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = (2, 24)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial values, norms' scales included, so that no term can hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if "norm" in name else noise * 1.5 * weight.shape[-1] ** -0.5)
    return model.eval()


def save(name: str, model: torch.nn.Module) -> None:
    folder = Path(__file__).parent / name
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], TOKENS)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits.numpy()
    np.savez_compressed(folder / "expected.npz", tokens=tokens.astype(np.int32), logits=logits)
    (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    common = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "attn_implementation": "eager"}
    llama = LlamaConfig(**common, intermediate_size=48, rms_norm_eps=1e-5, rope_theta=500_000.0)
    save("llama", randomised(LlamaForCausalLM(llama).float()))
    qwen3 = Qwen3Config(**common, intermediate_size=40, head_dim=16, tie_word_embeddings=True, rope_theta=1_000_000.0)
    save("qwen3", randomised(Qwen3ForCausalLM(qwen3).float()))
