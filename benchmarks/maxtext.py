"""CPU seconds of a training step at one shape: ours and MaxText's, in turn.

    uv run python benchmarks/maxtext.py PYTHON OUT [--rounds 3] [--remat POLICY] [--length 256] [d_model=128 ...]

`PYTHON` is an interpreter with MaxText (`pip install 'maxtext[tpu]'`, run here on the CPU), which is not part of this
project. Both sides train a Qwen3 decoder in float32 with AdamW on batches of 4,096 positions. MaxText gets its
synthetic data, which costs it nothing, and the fastest of its policies for rematerialisation (`full` is its default);
its dot-product attention is the one that runs on CPUs. A step's cost is the difference between a long run's and a short
one's, divided by the steps between them, so starting and compiling cancel out; ours comes from the run's own log.
"""

import argparse
import os
import statistics
import subprocess
from pathlib import Path

from nanochat import STAGE, Ours

TOKENS = 4096  # of a batch
SHORT, LONG = 10, 40  # steps
SHAPE = {"d_model": 256, "d_ff": 768, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2}
OPTIMIZER = f"train.{STAGE}.optimizer={{name: adamw, learning_rate: 0.001, schedule: {{warmup_steps: 20}}}}"
PEER_SETTINGS = (
    "head_dim=64",
    "vocab_size=4096",
    "decoder_block=qwen3",
    "use_qk_norm=true",
    "logits_via_embedding=true",
    "normalize_embedding_logits=false",
    'mlp_activations=["silu","linear"]',
    "enable_dropout=false",
    "dtype=float32",
    "weight_dtype=float32",
    "opt_type=adamw",
    "attention=dot_product",
    "dataset_type=synthetic",
    "hardware=cpu",
    "skip_jax_distributed_system=true",
    "enable_checkpointing=false",
    "enable_tensorboard=false",
)


def peer_shape(shape: dict[str, int]) -> list[str]:
    """MaxText's names of our sizes."""
    names = {
        "d_model": "base_emb_dim",
        "d_ff": "base_mlp_dim",
        "num_layers": "base_num_decoder_layers",
        "num_heads": "base_num_query_heads",
        "num_kv_heads": "base_num_kv_heads",
    }
    return [f"{names[name]}={size}" for name, size in shape.items()]


def our_batch(length: int, rows: int) -> list[str]:
    """Our settings for batches of so many rows, in as many parts as 16 rows of 256 take, if there are enough."""
    batch = {"seq_len": length, "global_batch_size": rows, "grad_accum": min(4, rows)}
    sizes = [f"train.{STAGE}.{name}={size}" for name, size in batch.items()]
    return [f"model.max_seq_len={length}", *sizes]


def peer_run(python: Path, out: Path, steps: int, settings: list[str]) -> float:
    """CPU seconds of a run of MaxText."""
    package = next(python.parent.parent.glob("lib/python3*/site-packages/maxtext"))
    every = ("run_name=cost", f"base_output_directory={out}", f"steps={steps}", *PEER_SETTINGS, *settings)
    command = [python, "-m", "maxtext.trainers.pre_train.train", package / "configs/base.yml", *every]
    with (out / f"maxtext-{steps}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=out, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"MaxText failed: see {out}/maxtext-{steps}.log")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints each round, and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("python", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", default="minimal_with_context")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("sizes", nargs="*")
    given = parser.parse_args()
    if given.length < 1 or TOKENS % given.length:
        parser.error(f"--length {given.length}: rows of one length make a batch of {TOKENS} positions")
    shape = SHAPE | {name: int(size) for name, size in (pair.split("=") for pair in given.sizes)}
    length, rows = given.length, TOKENS // given.length
    our_settings = (*(f"model.{name}={size}" for name, size in shape.items()), *our_batch(length, rows), OPTIMIZER)
    peer_batch = (f"max_target_length={length}", f"per_device_batch_size={rows}")
    peer_settings = [*peer_shape(shape), *peer_batch, f"remat_policy={given.remat}"]
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    costs: list[tuple[float, float]] = []
    for number in range(given.rounds):
        mine = Ours(out / f"round-{number}", our_settings).train(LONG, STAGE).cpu_s
        short, long = (peer_run(given.python.absolute(), out, steps, peer_settings) for steps in (SHORT, LONG))
        costs.append((mine, (long - short) / (LONG - SHORT)))
        print(f"round {number}: ours {costs[-1][0]:.2f}, MaxText {costs[-1][1]:.2f} core-s a step", flush=True)
    mine, theirs = (statistics.median(side) for side in zip(*costs, strict=True))
    print(f"tokens per core-s: ours {TOKENS / mine:,.0f}, MaxText {TOKENS / theirs:,.0f}, ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
