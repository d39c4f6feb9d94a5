"""Opens folders as users of transformers do: `python open_models.py logits|scores FOLDER [FOLDER ...]`.

Runs in the parity environment (see `golden/make_family_golden.py`). In each folder it reads `tokens.npy` and writes
`logits.npy` of a language model, or `scores.npy` of a model that scores texts; it refuses a load that transformers had
to mend.
"""
# pyrefly: ignore-errors[missing-import]

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

KINDS = {"logits": AutoModelForCausalLM, "scores": AutoModelForSequenceClassification}


@torch.no_grad()
def save_outputs(kind: str, folder: Path) -> None:
    model, report = KINDS[kind].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    assert not wrong, f"{folder}: not as transformers expects: {wrong}"
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    np.save(folder / f"{kind}.npy", model.eval()(tokens).logits.numpy())


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        save_outputs(sys.argv[1], Path(argument))
