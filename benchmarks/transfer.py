"""Loss against learning rate at widths 1x to 8x, with one rate for all widths and with `optimizer.base_width`.

    uv run python benchmarks/transfer.py RESULTS.jsonl docs/transfer.svg [adamw|muon ...]

Decoders of two layers and widths 32 to 256 learn the running Python's standard library, byte by byte, for 100 steps of
1,024 bytes. RESULTS keeps each finished curve: the same command goes on from there, and draws at the end. Six
core-minutes for each optimizer.
"""

import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.training.state import init_state, state_shardings

BASE, WIDTHS, HEAD_DIM = 32, (32, 64, 128, 256), 16
RATES = [2.0**power for power in range(-10, -3)]
STEPS, ROWS, LENGTH = 100, 16, 64
COLORS = ("#9ecae1", "#4292c6", "#08519c", "#041f3d")


def model_of(width: int) -> ModelConfig:
    """All widths in proportion, heads of one size."""
    heads = width // HEAD_DIM
    sizes = {"d_model": width, "d_ff": 2 * width, "num_heads": heads, "num_kv_heads": heads, "head_dim": HEAD_DIM}
    return ModelConfig.model_validate(
        {"vocab_size": 256, "num_layers": 2, "family": "qwen3", "qk_norm": "head"} | sizes
    )


def batches() -> Iterator[dict[str, np.ndarray]]:
    """The same random windows of the library's source for every run."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = np.concatenate([np.fromfile(path, np.uint8) for path in sorted(folder.glob("*.py"))]).astype(np.int32)
    draw = np.random.default_rng(0)
    while True:
        starts = draw.integers(0, len(text) - LENGTH - 1, ROWS)
        rows = np.stack([text[start : start + LENGTH + 1] for start in starts])
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
        ones = np.ones((ROWS, LENGTH), np.int32)
        yield {"tokens": rows[:, :-1], "targets": rows[:, 1:], "positions": positions, "segment_ids": ones,
               "loss_mask": ones.astype(np.float32)}  # fmt: skip


def curve(width: int, name: str, base: int | None) -> list[float]:
    """The mean loss of the last fifth of the steps, by learning rate; one program for all of them."""
    model, mesh = model_of(width), build_mesh(MeshConfig())
    schedule = ScheduleConfig(kind="constant")
    config = OptimizerConfig.model_validate(
        {"name": name, "base_width": base, "learning_rate": 1.0, "schedule": schedule}
    )
    optimizer = build_optimizer(config, model, STEPS, mesh)
    shardings = state_shardings(model, optimizer, mesh)
    objective = build_objective(model, NextTokenConfig(steps=STEPS, seq_len=LENGTH, global_batch_size=ROWS))

    def loss_of(params: Any, batch: Any) -> jax.Array:
        sums = objective(params, batch)
        return sums.loss / sums.count

    @jax.jit
    def step(params: Any, moments: Any, batch: Any, rate: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, jax.tree.map(lambda update: rate * update, updates)), moments, loss

    start = init_state(model, optimizer, shardings, jax.random.key(0), base)
    return [last_losses(step, start, rate) for rate in RATES]


def last_losses(step: Callable[..., Any], start: Any, rate: float) -> float:
    """Trains at one rate, warmed up over a tenth of the steps."""
    params, moments, losses = start.trained, start.opt_state, []
    for number, batch in zip(range(STEPS), batches(), strict=False):
        now = rate * min(1.0, (number + 1) / (STEPS // 10))
        params, moments, loss = step(params, moments, batch, jnp.float32(now))
        losses.append(loss)
    return float(np.mean(jax.device_get(losses[-STEPS // 5 :])))


def draw(records: dict[tuple[str, int | None, int], list[float]], path: Path, names: list[str]) -> None:
    """A row for each optimizer: without and with the base width, a curve for each width, its lowest point marked."""
    figure = Figure(figsize=(8, 3.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, sharey=True, sharex=True, squeeze=False)
    for row, name in enumerate(names):
        for axis, base in zip(axes[row], (None, BASE), strict=True):
            for color, width in zip(COLORS, WIDTHS, strict=True):
                losses = np.array(records[name, base, width])
                best = int(np.nanargmin(losses))
                axis.plot(RATES, losses, color=color, marker=".", label=f"{width}")
                axis.plot(RATES[best], losses[best], "o", color=color)
            axis.set(xscale="log", ylim=(2, 3), title=f"{name}, base_width {base}", xlabel="learning rate")
            axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel("loss after 100 steps, nats per byte")
    axes[0, 0].legend(title="d_model")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Trains what RESULTS lacks, prints each curve's best rate, and draws."""
    results, drawing, *names = sys.argv[1:]
    held = Path(results).read_text() if Path(results).exists() else ""
    lines = [json.loads(line) for line in held.splitlines()]
    records = {(known["name"], known["base"], known["width"]): known["losses"] for known in lines}
    for name in names or ["adamw", "muon"]:
        for width in WIDTHS:
            for base in (None, BASE):
                if (name, base, width) not in records:
                    records[name, base, width] = curve(width, name, base)
                    known = {"name": name, "base": base, "width": width, "losses": records[name, base, width]}
                    with open(results, "a") as file:
                        file.write(json.dumps(known) + "\n")
                losses = records[name, base, width]
                shown = "  ".join(f"{loss:.3f}" for loss in losses)
                print(
                    f"{name:6} base {base!s:5} width {width:4}  best {RATES[int(np.nanargmin(losses))]:.4f}  {shown}",
                    flush=True,
                )
    draw(records, Path(drawing), names or ["adamw", "muon"])


if __name__ == "__main__":
    main()
