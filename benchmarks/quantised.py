"""What rounded weights cost and what they save: quality of bundles in formats, beside memory and speed of decoding.

    uv run python benchmarks/quantised.py TASKS.yaml BUNDLE[:FORMAT] ... [--tokens 128] [--rounds 3]

    uv run python benchmarks/quantised.py tasks.yaml bundle bundle:int8 bundle:int4 calibrated:int4

A format is one of `serve.weights`, none the compute dtype. `TASKS` is what `lifecycle evaluate` takes, for example with
a task of kind `bits_per_byte` on held-out texts and one of kind `multiple_choice`; scores that are there already are
not computed again. The table has a line for each bundle: the bytes of its weights, tokens per second by rows, and each
task's score with the difference to the first bundle's on the same examples and its 95 % interval, in percent, of
accuracies in points. Decoding is that of `benchmarks/decode.py`, after random prompts of 64 tokens, in slots of 1,024:
the median of the rounds, in which the bundles take turns. `--rounds 0` leaves the speed out.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from decode import ROWS, Ours

from lifecycle.core.config import load_config
from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.core.progress import Silent
from lifecycle.evals.bundle import BundleTasksConfig, score_bundle
from lifecycle.evals.comparison import compare
from lifecycle.evals.results import LEVEL, EvalResult, read_results
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.model import Model
from lifecycle.model.config import WeightFormat
from lifecycle.model.params import abstract_in_use
from lifecycle.model.weight_formats import in_format
from lifecycle.weights import published

LENGTH, SLOT = 64, 1024


@dataclass(frozen=True)
class Subject:
    """A bundle in a format, as it is named on the command line."""

    name: str
    bundle: Path
    weights: WeightFormat | None

    @classmethod
    def of(cls, name: str) -> "Subject":
        """The bundle and the format behind its colon."""
        bundle, _, wanted = name.partition(":")
        formats: dict[str, WeightFormat | None] = {"": None, **{form: form for form in get_args(WeightFormat)}}
        if wanted not in formats:
            raise SystemExit(f"{name}: a format is one of {', '.join(get_args(WeightFormat))}")
        return cls(name, Path(bundle), formats[wanted])

    def model(self) -> Model:
        """The model, its weights in the format."""
        return load_bundle(self.bundle, weights=self.weights)

    @property
    def num_bytes(self) -> int:
        """What its weights take, as they are loaded."""
        config = published.load_config(self.bundle).trunk
        held = jax.eval_shape(partial(in_format, config, weights=self.weights), abstract_in_use(config))
        return sum(leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) // 8 for leaf in jax.tree.leaves(held))

    def scores(self, tasks: Path) -> list[EvalResult]:
        """Its score on each task."""
        config = load_config(BundleTasksConfig, tasks, [f"weights={self.weights}"] if self.weights else [])
        return read_results(score_bundle(config, self.bundle, Silent()).path)


def speeds(subjects: Sequence[Subject], tokens: int, rounds: int) -> list[dict[int, float]]:
    """Tokens per second of each, by the number of rows."""
    models = [subject.model() for subject in subjects]
    sides = [{rows: Ours(model.config, model.params, rows, SLOT) for rows in ROWS} for model in models]
    sizes = [model.config.vocab_size for model in models]
    del models
    seconds = [{rows: list[float]() for rows in ROWS} for _ in subjects]
    draws = np.random.default_rng(0)
    for number in range(rounds + 1):  # the first one warms up
        for own, by_rows, size in zip(sides, seconds, sizes, strict=True):
            for rows, side in own.items():
                step_s = side.decode(draws.integers(0, size, (rows, LENGTH)).tolist(), tokens).step_s
                if number:
                    by_rows[rows].append(step_s)
    return [{rows: rows / statistics.median(taken) for rows, taken in own.items()} for own in seconds]


def compared(base: EvalResult, own: EvalResult) -> str:
    """A score, and its difference to the first bundle's."""
    if own is base:
        return f"{own.mean:.4f}"
    scale, unit = (100.0, "points") if own.higher_is_better else (100.0 / base.mean, "%")
    found = compare(base, own, LEVEL)
    ends = f"{scale * found.low:+.2f} to {scale * found.high:+.2f}"
    return f"{own.mean:.4f} ({scale * found.difference:+.2f} {unit}, {ends})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", type=Path)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    subjects = [Subject.of(name) for name in given.bundles]
    rates = speeds(subjects, given.tokens, given.rounds) if given.rounds else [{} for _ in subjects]
    first: list[EvalResult] = []
    for subject, by_rows in zip(subjects, rates, strict=True):
        results = subject.scores(given.tasks)
        if not first:
            first = results
            names = ["bundle", "MB", *(f"tokens/s, rows: {rows}" for rows in by_rows)]
            names += [f"{result.task}, {result.metric}" for result in results]
            print(f"| {' | '.join(names)} |\n{'---'.join('|' * (len(names) + 1))}")
        cells = [subject.name, f"{subject.num_bytes / 1e6:.1f}", *(f"{rate:.1f}" for rate in by_rows.values())]
        cells += [compared(base, own) for base, own in zip(first, results, strict=True)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
