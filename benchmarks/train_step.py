"""Training speed as a share of the machine's matrix-product rate.

    uv run python benchmarks/train_step.py [CONFIG [key=value ...]]

Times the real train step of a run's pre-training (model, batch, optimizer and all) beside a large float32 product, turn
by turn, so that both see the same load of a shared machine. Prints the medians of wall time and of CPU time; the share
in CPU time is the steadier one where other programs run. FLOPs are the model's own: matrix products only, causal
attention counted half, no recomputation, the optimizer not counted.
"""

import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.config import load_config
from lifecycle.core.machine import PEAK_SIZE, restart_with_huge_pages
from lifecycle.core.mesh import build_mesh
from lifecycle.model.config import forward_flops_per_token, num_params
from lifecycle.stages.config import RunConfig
from lifecycle.training.objectives.language import next_token
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.placement import place_batch
from lifecycle.training.step import init_state, make_train_step, state_shardings

ROUNDS = 20


def spent(work) -> tuple[float, float]:
    """Wall and CPU seconds of one call, its results waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Runs the benchmark for the config named on the command line."""
    path, *overrides = sys.argv[1:] or ["configs/quickstart.yaml"]
    config = load_config(RunConfig, path, overrides)
    train, model, mesh = config.pretrain, config.model, build_mesh(config.mesh)
    optimizer = build_optimizer(train.optimizer, train.steps)
    shardings = state_shardings(model, optimizer, mesh)
    state = init_state(model, optimizer, shardings, jax.random.key(0))
    step = make_train_step(partial(next_token, model, remat=train.remat, loss_chunks=train.loss_chunks), optimizer, mesh, shardings, train.grad_accum)
    batch = place_batch(random_batch(model.vocab_size, train.global_batch_size, train.seq_len), mesh)
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    print(f"compile             {time.perf_counter() - started:.1f} s")

    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(jnp.matmul)
    steps, products = [], []
    for _ in range(ROUNDS + 2):
        started = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        steps.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        products.append(spent(lambda: product(matrix, matrix)))
    report(model, train, steps[2:], products[2:])


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


def report(model, train, steps: list[tuple[float, float]], products: list[tuple[float, float]]) -> None:
    """Prints medians of time, tokens and FLOPs, and their share of the product's rate."""
    tokens = train.global_batch_size * train.seq_len
    flops = 3 * forward_flops_per_token(model, train.seq_len) * tokens
    print(f"model               {num_params(model):,} parameters, {tokens:,} tokens a step")
    for number, clock in enumerate(("wall", "CPU")):
        step = statistics.median(s[number] for s in steps)
        peak = 2 * PEAK_SIZE**3 / statistics.median(p[number] for p in products)
        print(
            f"{clock:<5} time          step {step * 1e3:6.1f} ms, {tokens / step:9,.0f} tokens/s, "
            f"{flops / step / 1e9:6.1f} of {peak / 1e9:6.1f} GFLOP/s: {flops / step / peak:.1%}"
        )


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
