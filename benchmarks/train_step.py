"""Training speed as a share of the machine's matrix-product rate.

    uv run python benchmarks/train_step.py [CONFIG [key=value ...]]

Times the real train step of a run's first training stage (model, batch, optimizer and all) and a large float32 product
in turn, so that both see the same load of a shared machine. Prints the medians of wall time and of CPU time; the share
in CPU time is the steadier one where other programs run. FLOPs are the model's own: matrix products only, causal
attention counted half, no recomputation, the optimizer not counted; the second line leaves its time out too.

Before that, two fresh processes make the step's program, the first with an empty compilation cache, the second from
what the first kept, and print what tracing, lowering and the compiler (or reading the kept program) took.
"""

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.core.machine import PEAK_SIZE
from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token, num_params
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.planning.run_file import StepConfig, read_step
from lifecycle.training.config import TrainConfig
from lifecycle.training.lowering import trace_train_step
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.state import init_state, state_shardings
from lifecycle.training.step import make_train_step

ROUNDS = 20


type Spent = tuple[float, float]  # wall and CPU seconds


def spent(work: Callable[[], Any]) -> Spent:
    """Wall and CPU seconds of one call, its results waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Runs the benchmark for the config named on the command line."""
    path, *overrides = sys.argv[1:] or ["configs/quickstart.yaml"]
    config = read_step(Path(path), overrides)
    print_compile_times(config)
    train, model, mesh = config.train, config.model, build_mesh(config.mesh)
    batch = shard_batch(random_batch(model.vocab_size, train.global_batch_size, train.seq_len), mesh)
    whole = Step(config, mesh, batch, build_optimizer(train.optimizer, config.model, train.steps, mesh))
    gradients = Step(config, mesh, batch, optax.set_to_zero())  # forward and backward, and hardly anything else
    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(jnp.matmul)
    times = [(spent(whole), spent(gradients), spent(lambda: product(matrix, matrix))) for _ in range(ROUNDS + 2)]
    report(model, train, times[2:])


def print_compile_times(config: StepConfig) -> None:
    """Seconds to the step's executable in a process that has just started, cold and from the persistent cache."""
    with tempfile.TemporaryDirectory() as folder:
        for name, last in (("cold", "compile"), ("from the cache", "read")):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                parts = process.apply(compile_times, (config, Path(folder)))
            for clock, taken in zip(("wall", "CPU"), zip(*parts, strict=True), strict=True):
                traced, lowered, made = taken
                print(
                    f"{clock:<5} compile, {name:<14} {sum(taken):5.2f} s: "
                    f"trace {traced:.2f}, lower {lowered:.2f}, {last} {made:.2f}"
                )


def compile_times(config: StepConfig, folder: Path) -> list[Spent]:
    """What tracing, lowering and compiling take, with the persistent compilation cache in `folder`."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    mesh = build_mesh(config.mesh)
    clocks = [(time.perf_counter(), time.process_time())]
    traced = trace_train_step(config.model, config.train, mesh)
    clocks.append((time.perf_counter(), time.process_time()))
    lowered = traced.lower()
    clocks.append((time.perf_counter(), time.process_time()))
    lowered.compile()
    clocks.append((time.perf_counter(), time.process_time()))
    return [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(clocks)]


class Step:
    """A compiled step that keeps its state."""

    def __init__(self, config: StepConfig, mesh: Mesh, batch: Batch, optimizer: optax.GradientTransformation) -> None:
        train, model = config.train, config.model
        shardings = state_shardings(model, optimizer, mesh)
        self.state, self.batch = init_state(model, optimizer, shardings, jax.random.key(0)), batch
        objective = build_objective(model, train)
        step = make_train_step(objective, optimizer, mesh, shardings, train.grad_accum)
        self.compiled = step.lower(self.state, batch).compile()

    def __call__(self) -> Any:
        self.state, metrics = self.compiled(self.state, self.batch)
        return self.state, metrics


def random_batch(vocab_size: int, rows: int, length: int) -> dict[str, np.ndarray]:
    """One segment a row; values do not change the time."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length), dtype=np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        "segment_ids": np.ones_like(tokens),
        "loss_mask": np.ones(tokens.shape, np.float32),
    }


def report(model: ModelConfig, train: TrainConfig, times: list[tuple[Spent, Spent, Spent]]) -> None:
    """Prints medians of time, tokens and FLOPs, and their share of the product's rate."""
    tokens = train.global_batch_size * train.seq_len
    flops = 3 * forward_flops_per_token(train.computed(model), train.seq_len) * tokens
    print(f"model               {num_params(model):,} parameters, {tokens:,} tokens a step")
    for number, clock in enumerate(("wall", "CPU")):
        peak = 2 * PEAK_SIZE**3 / statistics.median(product[number] for *_, product in times)
        for name, column in (("step", 0), ("forward, backward", 1)):
            took = statistics.median(round_[column][number] for round_ in times)
            print(
                f"{clock:<5} {name:<18} {took * 1e3:6.1f} ms, {tokens / took:9,.0f} tokens/s, "
                f"{flops / took / 1e9:6.1f} of {peak / 1e9:6.1f} GFLOP/s: {flops / took / peak:.1%}"
            )


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
