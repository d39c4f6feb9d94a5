"""Opens adapters as users of PEFT do and computes logits: `python open_adapters.py FOLDER [FOLDER ...]`.

Runs in an environment with torch, transformers and peft (see `golden/make_adapter_golden.py`). A folder has the base
model, its `adapter` and `tokens.npy`; it gets `logits.npy` with the adapter beside the weights, and `merged.npy` with
it added to them.
"""
# pyrefly: ignore-errors[missing-import]

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


@torch.no_grad()
def save_logits(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter.*keys.*")  # missing or unexpected tensors
        model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    np.save(folder / "logits.npy", model(tokens).logits.numpy())
    np.save(folder / "merged.npy", model.merge_and_unload()(tokens).logits.numpy())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        save_logits(Path(argument))
