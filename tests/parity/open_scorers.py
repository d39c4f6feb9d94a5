"""Opens folders as users of transformers do and scores texts: `python open_scorers.py FOLDER [FOLDER ...]`.

Runs in the parity environment (see `golden/make_family_golden.py`). In each folder it reads `tokens.npy` and writes
`scores.npy`; it refuses a load that transformers had to mend.
"""
# pyright: reportMissingImports=false

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification


@torch.no_grad()
def save_scores(folder: Path) -> None:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    assert not wrong, f"{folder}: not as transformers expects: {wrong}"
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    np.save(folder / "scores.npy", model.eval()(tokens).logits.numpy())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        save_scores(Path(argument))
