"""Makes the golden values of low-rank adapters with `peft`: adapters as PEFT saves them, and the logits with them.

Run it in an environment of its own, never the project's (made with torch 2.13.0, transformers 5.24.0, peft 0.21.2):

    python -m venv /tmp/peft && /tmp/peft/bin/pip install 'torch<=2.13.0' transformers safetensors peft
    /tmp/peft/bin/python tests/golden/make_adapter_golden.py [FOLDER]

The base models are those of `families/` (`make_family_golden.py`). Writes `NAME/` in `adapters/` beside itself, or in
FOLDER: the adapter's two files and `expected.npz` with the base's `tokens [B, T]`, float32 `logits [B, T, V]`, and
`greedy [B, N]`, how the first `PROMPT` tokens go on. Of those in `TRAINED` it also has the mean `loss` of the next
tokens, and `grads.npz` its gradients by the tensors' names in the adapter's file.
"""
# pyrefly: ignore-errors[missing-import]

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_weights import write_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).parent
PROMPT, NEW = 6, 10

# By name: the base model, and the adapter's settings.
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3_qv": (
        "llama3",
        {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"],
         "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    ),
    "llama3_all": ("llama3", {"r": 3, "lora_alpha": 2, "use_rslora": True, "target_modules": "all-linear"}),
    "llama3_dora": (
        "llama3", {"r": 3, "lora_alpha": 2, "use_rslora": True, "use_dora": True, "target_modules": "all-linear"},
    ),
    "qwen3_qkvo": ("qwen3", {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    "deepseek_v3": (
        "deepseek_v3",
        {"r": 4, "lora_alpha": 1, "target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]},
    ),
}  # fmt: skip

TRAINED = ("llama3_all", "llama3_dora", "qwen3_qkvo")  # of one rank


def adapted_model(base: str, settings: dict[str, Any]) -> Any:
    """The base model with an adapter whose values are far from initial ones."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_model(GOLDEN / "families" / base, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.peft_config["default"].base_model_name_or_path = base
    draws = np.random.RandomState(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:  # columns of other lengths than the weights'
                parameter.mul_(torch.tensor(draws.uniform(0.5, 1.5, tuple(parameter.shape)), dtype=torch.float32))
            elif ".lora_" in name:
                values = draws.standard_normal(tuple(parameter.shape)) * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.tensor(values, dtype=torch.float32))
    return adapted.eval()


def saved_name(parameter: str) -> str:
    """The name of a parameter in the adapter's file."""
    return parameter.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")


def write_golden(name: str, out: Path) -> None:
    """Writes an adapter's folder."""
    base, settings = ADAPTERS[name]
    model = adapted_model(base, settings)
    model.save_pretrained(out)
    (out / "README.md").unlink()
    (out / "adapter_model.safetensors").chmod(0o644)
    tokens = np.load(GOLDEN / "families" / base / "expected.npz")["tokens"]
    ids = torch.tensor(tokens, dtype=torch.long)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.numpy()
        greedy = ids[:, :PROMPT]
        for _ in range(NEW):
            newest = model(input_ids=greedy, use_cache=False).logits[:, -1].argmax(-1)
            greedy = torch.cat([greedy, newest[:, None]], 1)
        with model.disable_adapter():
            plain = model(input_ids=ids, use_cache=False).logits.numpy()
    assert np.abs(plain - logits).max() > 1, "the adapter changes the logits"
    known = {"tokens": tokens, "logits": logits, "greedy": greedy[:, PROMPT:].numpy()}
    if name in TRAINED:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        known["loss"] = loss.detach().numpy()
        grads = {saved_name(key): p.grad.numpy() for key, p in model.named_parameters() if p.requires_grad}
        np.savez_compressed(out / "grads.npz", **grads)
    np.savez_compressed(out / "expected.npz", **known)
    print(name, f"changes logits by up to {np.abs(plain - logits).max():.2f}")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN / "adapters"
    for adapter in ADAPTERS:
        write_golden(adapter, target / adapter)
