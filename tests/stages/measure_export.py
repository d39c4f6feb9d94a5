"""Measures the host memory that an export takes: `python measure_export.py FOLDER`.

One process saves a checkpoint of 0.7 GB of weights, experts among them; another exports it. The weights are zeros,
which compression makes small on the disk, and which memory holds as it holds any. The last line printed is JSON:
`params_bytes`, `largest_bytes` (of one array), `start_bytes` (in memory before the export) and `peak_bytes`, as the
kernel counts resident memory (`VmRSS`, `VmHWM` of /proc/self/status).
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from lifecycle.core.artifact import Artifact
from lifecycle.model.config import ModelConfig, MoeConfig
from lifecycle.model.params import abstract_params
from lifecycle.stages.export import export_weights
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.config import CheckpointConfig
from lifecycle.training.job import CHECKPOINTS
from lifecycle.weights.published import array_shapes

CONFIG = ModelConfig(
    vocab_size=8000, d_model=1024, d_ff=2048, num_layers=3, num_heads=16, num_kv_heads=8, head_dim=64, family="mixtral",
    moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=2048),
)  # fmt: skip


@dataclass
class Trained:
    path: Path
    stats: dict[str, Any] = field(default_factory=lambda: {"steps": 1})


def save(folder: Path) -> None:
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_params(CONFIG))
    checkpoints = Checkpointer(folder / CHECKPOINTS, CheckpointConfig(every=1, keep=1))
    checkpoints.save(1, {"params": params, "step": jnp.int32(1)}, {}, {})
    checkpoints.close()


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def export(folder: Path) -> None:
    start = resident_bytes("VmRSS")
    out = folder / "bundle"
    out.mkdir()
    export_weights(CONFIG, cast(Artifact, Trained(folder)), out)
    sizes = [4 * math.prod(shape) for shape in array_shapes(CONFIG).values()]
    figures = {"params_bytes": sum(sizes), "largest_bytes": max(sizes), "start_bytes": start}
    print(json.dumps(figures | {"peak_bytes": resident_bytes("VmHWM")}))


def main(folder: Path) -> None:
    for step in ("save", "export"):
        done = subprocess.run([sys.executable, __file__, step, str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    print(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["save", folder]:
            save(Path(folder))
        case ["export", folder]:
            export(Path(folder))
        case [folder]:
            main(Path(folder))
