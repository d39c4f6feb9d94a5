"""Opens a folder as `transformers` users do and computes logits: `python open_bundle.py FOLDER TOKENS.npy LOGITS.npy`.

Runs in the parity environment (see `make_decoder_golden.py`); refuses a load that transformers had to mend.
"""
# pyright: reportMissingImports=false

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, tokens, logits = sys.argv[1:]
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    assert not wrong, f"not as transformers expects: {wrong}"
    with torch.no_grad():
        np.save(logits, model.eval()(torch.from_numpy(np.load(tokens)).long()).logits.numpy())


if __name__ == "__main__":
    main()
