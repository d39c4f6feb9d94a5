"""What packing gives fine-tuning, and what preferences cost beside it.

    uv run python benchmarks/post_training.py [CONFIG [key=value ...]]

Three train steps of the model of the run's first training stage (`configs/quickstart.yaml` if none is named), whole
with their optimizer, in one process and in turn, so that all see the same load of a shared machine:

- fine-tuning on packed rows;
- fine-tuning on the same conversations, each padded to a row of its own: at the stage's `seq_len`, the one shape that
  holds all of them, and at the length of the batch's longest conversation, rounded up to 8, as collators that pad a
  batch do (TRL's, with `pad_to_multiple_of`): with a shape, and on an accelerator a compilation, for each length;
- DPO on packed pairs, in rows of the same shape, with the reference's log-probabilities at hand.

Conversations have the lengths of short instructions (`instructions_1100.json` in SmolLM2's tokens: 42 to 104, a quarter
of them learned) and random ids, which do not change the time. Each round takes the next batch, so that nearly an epoch
is measured: how full rows are differs by 6 % between batches. Prints medians of CPU and wall time per step, and the
means of tokens in it: of padding, none are counted. Beside the gain of packing stands what it can be at most where time
is proportional to positions: the ratio of the shares of positions that are no padding.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.planning.run_file import StepConfig, read_step
from lifecycle.training.config import TrainConfig
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.packing import ExampleRows, RowSource, packed_row
from lifecycle.training.preference import DpoConfig
from lifecycle.training.state import init_state, state_shardings
from lifecycle.training.step import make_train_step

ROUNDS, WARM_UP, STEPS = 13, 1, 1000
NUM_EXAMPLES = 1000
PROMPT, SPREAD, SHORTEST, LONGEST = 58.0, 9.0, 42, 104  # tokens of a conversation
LEARNED = 0.25
REFERENCE = {"ref_logprobs": (-20.0, -20.0)}


@dataclass(frozen=True)
class Example:
    """Ids, and which of them are learned."""

    ids: Sequence[int]
    loss_mask: Sequence[bool]


class Shared:
    """One training state, which all steps move on: memory for one is enough."""

    def __init__(self, config: StepConfig) -> None:
        self.mesh = build_mesh(config.mesh)
        self.optimizer = build_optimizer(config.train.optimizer, config.model, STEPS, self.mesh)
        self.shardings = state_shardings(config.model, self.optimizer, self.mesh)
        self.state = init_state(config.model, self.optimizer, self.shardings, jax.random.key(0))


class Timed:
    """A compiled step, and the seconds that it took."""

    def __init__(
        self, config: StepConfig, train: TrainConfig, batches: Sequence[Mapping[str, np.ndarray]], shared: "Shared"
    ) -> None:
        self.shared, self.batches = shared, [shard_batch(batch, shared.mesh) for batch in batches]
        objective = build_objective(config.model, train)
        step = make_train_step(objective, shared.optimizer, shared.mesh, shared.shardings, train.grad_accum)
        self.compiled = step.lower(shared.state, self.batches[0]).compile()
        self.shape = batches[0]["tokens"].shape
        self.tokens = statistics.mean(int((batch["segment_ids"] > 0).sum()) for batch in batches[WARM_UP:])
        self.learned = statistics.mean(int(batch["loss_mask"].sum()) for batch in batches[WARM_UP:])
        self.fill = self.tokens / batches[0]["tokens"].size
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self) -> None:
        """One step, on the next batch."""
        batch = self.batches[len(self.wall)]
        wall, cpu = time.perf_counter(), time.process_time()
        self.shared.state, metrics = self.compiled(self.shared.state, batch)
        jax.block_until_ready((self.shared.state, metrics))
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    @property
    def median(self) -> tuple[float, float]:
        """CPU and wall seconds of a step."""
        return statistics.median(self.cpu[WARM_UP:]), statistics.median(self.wall[WARM_UP:])


def main() -> None:
    """Runs the benchmark for the config named on the command line."""
    path, *overrides = sys.argv[1:] or ["configs/quickstart.yaml"]
    config = read_step(Path(path), overrides)
    shared, examples = Shared(config), conversations(config.model.vocab_size)
    rows, length = config.train.global_batch_size, config.train.seq_len
    common: dict[str, Any] = {
        name: getattr(config.train, name) for name in ("grad_accum", "remat", "loss_chunks", "optimizer")
    }
    common |= {"steps": STEPS, "seq_len": length, "global_batch_size": rows}
    sft, dpo = SftConfig(**common), DpoConfig(**common)
    parts = [examples[first : first + rows] for first in range(0, rows * (ROUNDS + WARM_UP), rows)]
    longest = [max(len(example.ids) for example in part) for part in parts]
    short = round(statistics.mean(-(-size // 8) * 8 for size in longest) / 8) * 8  # one program for all batches
    fitting = [[cut(example, short) for example in part] for part in parts]
    batches = {
        "SFT, packed": (sft, stacked(ExampleRows(examples, length, 0), rows)),
        f"SFT, a row of {length} each": (sft, [alone(part, length) for part in parts]),
        f"SFT, a row of {short} each": (sft, [alone(part, short) for part in fitting]),
        "DPO, packed": (dpo, stacked(GroupRows(pairs(examples), length, 0), rows)),
    }
    steps = {name: Timed(config, train, listed, shared) for name, (train, listed) in batches.items()}
    for _ in range(ROUNDS + WARM_UP):
        for step in steps.values():
            step.run()
    report(steps)


def conversations(vocab_size: int) -> list[Example]:
    """Examples with the lengths of short instructions."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(PROMPT, SPREAD, NUM_EXAMPLES), SHORTEST, LONGEST).astype(int)
    learned = np.maximum(1, np.round(lengths * LEARNED).astype(int))
    return [
        Example(rng.integers(0, vocab_size, length).tolist(), [False] * (length - last) + [True] * last)
        for length, last in zip(lengths, learned, strict=True)
    ]


def pairs(examples: Sequence[Example]) -> list[Group]:
    """Each two examples as a pair."""
    return [Group(two, REFERENCE) for two in zip(examples[::2], examples[1::2], strict=True)]


def cut(example: Example, size: int) -> Example:
    """Its last tokens, if there are more."""
    return Example(example.ids[-size:], example.loss_mask[-size:])


def stacked(rows: RowSource, size: int) -> list[dict[str, np.ndarray]]:
    """The first batches."""
    batches = [[rows.row(index) for index in range(at * size, (at + 1) * size)] for at in range(ROUNDS + WARM_UP)]
    return [{name: np.stack([row[name] for row in listed]) for name in listed[0]} for listed in batches]


def alone(examples: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """A batch of one example in each row."""
    listed = [packed_row([example], length) for example in examples]
    return {name: np.stack([row[name] for row in listed]) for name in listed[0]}


def report(steps: Mapping[str, Timed]) -> None:
    """Prints medians, and the two ratios."""
    print(f"{'step':<26} {'rows':>10} {'tokens':>7} {'learned':>7} {'CPU s':>7} {'wall s':>7} {'learned/CPU s':>14}")
    for name, step in steps.items():
        (cpu, wall), shape = step.median, "x".join(map(str, step.shape))
        rate = step.learned / cpu
        print(f"{name:<26} {shape:>10} {step.tokens:7.0f} {step.learned:7.0f} {cpu:7.3f} {wall:7.3f} {rate:14,.0f}")
    packed, *unpacked, dpo = steps.items()
    for name, step in unpacked:
        gains = [packed[1].learned / step.learned * b / a for a, b in zip(packed[1].median, step.median, strict=True)]
        share = packed[1].fill / step.fill
        print(f"packed learns {gains[0]:.2f} x (CPU), {gains[1]:.2f} x (wall) of {name!r} a second; fill {share:.2f} x")
    per_step = [a / b for a, b in zip(dpo[1].median, packed[1].median, strict=True)]
    fill = packed[1].tokens / dpo[1].tokens
    print(
        f"DPO takes {per_step[0]:.2f} x (CPU), {per_step[1]:.2f} x (wall) of SFT's time for the same rows, and for a "
        f"token in them {fill * per_step[0]:.2f} x (CPU), {fill * per_step[1]:.2f} x (wall)"
    )


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
