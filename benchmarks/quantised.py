"""What rounded weights cost and what they save: quality of bundles in formats, beside memory and speed of decoding.

    uv run --extra cpu-kernels python benchmarks/quantised.py TASKS.yaml BUNDLE[:FORMAT] ... [--tokens 128] [--rounds 3]

    uv run --extra cpu-kernels python benchmarks/quantised.py tasks.yaml bundle bundle:int8 bundle:int4 calibrated:int4

A format is one of `serve.weights`, none the compute dtype. `TASKS` is what `lifecycle evaluate` takes, for example with
a task of kind `bits_per_byte` on held-out texts and one of kind `multiple_choice`; scores that are there already are
not computed again. Each is printed with its difference to the first bundle's, in percent. Decoding is that of
`benchmarks/decode.py`, after random prompts of 64 tokens, in slots of 1,024: the median of the rounds, in which the
bundles take turns.
"""

import argparse
import statistics
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from decode import ROWS, Ours

from lifecycle.core.config import load_config
from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.core.progress import Silent
from lifecycle.evals.bundle import BundleTasksConfig, score_bundle
from lifecycle.evals.results import EvalResult, read_results
from lifecycle.inference.bundle import load_bundle
from lifecycle.model.config import WeightFormat

LENGTH, SLOT = 64, 1024


def scores(tasks: Path, bundle: Path, weights: WeightFormat | None) -> list[EvalResult]:
    config = load_config(BundleTasksConfig, tasks, [f"weights={weights}"] if weights else [])
    return read_results(score_bundle(config, bundle, Silent()).path)


def decoders(bundle: Path, weights: WeightFormat | None) -> tuple[int, dict[int, Ours], int]:
    """The bytes of the weights, what decodes for each number of rows, and the vocabulary's size."""
    model = load_bundle(bundle, weights=weights)
    sides = {rows: Ours(model.config, model.params, rows, SLOT) for rows in ROWS}
    num_bytes = sum(leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for leaf in jax.tree.leaves(model.params))
    return num_bytes, sides, model.config.vocab_size


def bundle_and_format(name: str) -> tuple[Path, WeightFormat | None]:
    bundle, _, wanted = name.partition(":")
    formats: dict[str, WeightFormat | None] = {"": None, **{form: form for form in get_args(WeightFormat)}}
    if wanted not in formats:
        raise SystemExit(f"{name}: a format is one of {', '.join(get_args(WeightFormat))}")
    return Path(bundle), formats[wanted]


def main() -> None:
    """Prints a line for each bundle in a format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", type=Path)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    pairs = {name: bundle_and_format(name) for name in given.bundles}
    held = {name: decoders(*pair) for name, pair in pairs.items()}
    seconds: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in held for rows in ROWS}
    draws = np.random.default_rng(0)
    for number in range(given.rounds + 1):  # the first one warms up
        for name, (_, sides, vocab_size) in held.items():
            for rows, side in sides.items():
                prompts = draws.integers(0, vocab_size, (rows, LENGTH)).tolist()
                step_s = side.decode(prompts, given.tokens).step_s
                if number:
                    seconds[name, rows].append(step_s)
    sizes = {name: num_bytes for name, (num_bytes, *_) in held.items()}
    held.clear()
    first: list[EvalResult] = []
    for name, pair in pairs.items():
        results = scores(given.tasks, *pair)
        first = first or results
        rates = ", ".join(f"{rows}: {rows / statistics.median(seconds[name, rows]):.1f}" for rows in ROWS)
        measured = ", ".join(
            f"{own.task} {own.metric} {own.mean:.4f} ({own.mean / base.mean - 1:+.2%})"
            for own, base in zip(results, first, strict=True)
        )
        print(f"{name}: {sizes[name] / 1e6:.1f} MB; tokens/s by rows {rates}; {measured}", flush=True)


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
