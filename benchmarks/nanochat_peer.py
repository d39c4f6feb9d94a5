"""The other side of `benchmarks/nanochat.py`: trains by nanochat's own script and scores what came out.

    PYTHON benchmarks/nanochat_peer.py train|score SETTINGS.json

Runs in a Python environment with torch, in a checkout of nanochat that is not part of this project, whose code is used
as it is. `SETTINGS.json`: `code` (the checkout), `base` (its data folder), `flags` (of its `scripts.base_train`),
`steps`, `tag` (the checkpoint's name), `heldout` (a Parquet file with a column `text`). Prints one JSON line.
"""

import importlib
import json
import math
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

SKIPPED_STEPS = 2  # the first ones compile
ROWS = 16  # of a batch that is scored


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Trains for `steps` steps; CPU and wall seconds of a step, from the end of one update to the next one's.

    Compilation, evaluation and the final checkpoint are outside; its compiling processes are too.
    """
    optim = importlib.import_module("nanochat.optim")
    ends: list[tuple[float, float]] = []
    update = optim.MuonAdamW.step

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = update(self, *args, **kwargs)
        ends.append((time.process_time(), time.perf_counter()))
        return result

    optim.MuonAdamW.step = timed
    quiet = ("--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1", "--run=dummy")
    named = (f"--num-iterations={settings['steps']}", f"--model-tag={settings['tag']}")
    sys.argv = ["base_train", *settings["flags"], *quiet, *named]
    left = runpy.run_module("scripts.base_train", run_name="__main__")
    between = len(ends) - 1 - SKIPPED_STEPS
    cpu_s, wall_s = (last - first for first, last in zip(ends[SKIPPED_STEPS], ends[-1], strict=True))
    return {
        "steps": len(ends),
        "tokens_per_step": left["total_batch_size"],
        "cpu_s_per_step": cpu_s / between,
        "wall_s_per_step": wall_s / between,
        "parameters": left["num_params"],
        "flops_per_token": left["num_flops_per_token"],
    }


def score(settings: dict[str, Any]) -> dict[str, float]:
    """Bits per byte of the held-out documents, each after a BOS, in windows of the model's context."""
    torch, parquet = importlib.import_module("torch"), importlib.import_module("pyarrow.parquet")
    loading = importlib.import_module("nanochat.checkpoint_manager")
    model, tokenizer, _ = loading.load_model("base", torch.device("cpu"), "eval", model_tag=settings["tag"])
    texts = parquet.read_table(settings["heldout"], columns=["text"])["text"].to_pylist()
    length = model.config.sequence_len
    documents = tokenizer.encode(texts, prepend=tokenizer.get_bos_token_id())
    pieces = [ids[start : start + length + 1] for ids in documents for start in range(0, len(ids) - 1, length)]
    nats = 0.0
    with torch.no_grad():
        for first in range(0, len(pieces), ROWS):
            tokens = torch.zeros(ROWS, length, dtype=torch.long)
            targets = torch.full((ROWS, length), -1, dtype=torch.long)  # -1: not counted
            for row, piece in enumerate(pieces[first : first + ROWS]):
                ids = torch.tensor(piece)
                tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            nats += model(tokens, targets, loss_reduction="sum").item()
    num_bytes = sum(len(text.encode()) for text in texts)
    return {"bits_per_byte": nats / math.log(2) / num_bytes, "bytes": num_bytes}


def main() -> None:
    """Runs the part that the command line names."""
    settings = json.loads(Path(sys.argv[2]).read_text())
    os.environ.update(NANOCHAT_BASE_DIR=settings["base"], NANOCHAT_DTYPE="float32", WANDB_MODE="disabled")
    os.chdir(settings["code"])
    sys.path.insert(0, settings["code"])
    part = {"train": train, "score": score}[sys.argv[1]]
    print(json.dumps(part(settings)))


if __name__ == "__main__":
    main()
