"""The other side of `benchmarks/decode.py`: transformers' `generate` on a bundle.

    PYTHON -P benchmarks/decode_peer.py BUNDLE

Runs in an environment with torch and transformers. Reads lines of JSON, `prompts` (ids) and `tokens`, and answers each
with a line: `ids`, and `step_s`, the seconds of a step after the first.
"""

import importlib
import json
import sys
import time
from typing import Any


def main() -> None:
    """Answers until the input ends."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    model.eval()

    def generate(prompts: Any, tokens: int) -> tuple[Any, float]:
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return out, time.perf_counter() - began

    for line in sys.stdin:
        settings = json.loads(line)
        prompts, tokens = torch.tensor(settings["prompts"]), settings["tokens"]
        _, first_s = generate(prompts, 1)
        out, all_s = generate(prompts, tokens)
        ids = out[:, prompts.shape[1] :].tolist()
        print(json.dumps({"ids": ids, "step_s": (all_s - first_s) / (tokens - 1)}), flush=True)


if __name__ == "__main__":
    main()
