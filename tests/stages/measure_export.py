"""Measures the host memory that an export takes: `python measure_export.py FOLDER`.

One process saves a checkpoint of 0.7 GB of weights, experts among them; another exports it. The weights are zeros,
which compression makes small on the disk, and which memory holds as it holds any. The same is done with 1 MB of
weights: what a kernel counts as resident of the libraries differs between machines. The last line printed is JSON:
`params_bytes`, `largest_bytes` (of one array), `small_bytes` and `peak_bytes`: the most that exporting 1 MB, and all,
had in memory (`VmHWM` of /proc/self/status).
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
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.job import CHECKPOINTS
from lifecycle.weights.arrays import array_shapes

CONFIG = ModelConfig(
    vocab_size=8000, d_model=1024, d_ff=2048, num_layers=3, num_heads=16, num_kv_heads=8, head_dim=64, family="mixtral",
    moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=2048),
)  # fmt: skip
SMALL = CONFIG.model_copy(
    update={"vocab_size": 80, "d_model": 64, "d_ff": 64, "moe": MoeConfig(num_experts=8, experts_per_token=2, d_ff=64)}
)
CONFIGS = {"large": CONFIG, "small": SMALL}


@dataclass
class Trained:
    path: Path
    stats: dict[str, Any] = field(default_factory=lambda: {"steps": 1})


def save(folder: Path, config: ModelConfig) -> None:
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_params(config))
    checkpoints = Checkpointer(folder / CHECKPOINTS, CheckpointConfig(every=1, keep=1))
    checkpoints.save(1, {"params": params, "step": jnp.int32(1)}, {}, {})
    checkpoints.close()


def export(folder: Path, config: ModelConfig) -> None:
    out = folder / "bundle"
    out.mkdir()
    export_weights(config, cast(Artifact, Trained(folder)), out)
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) * 1024)


def peak_bytes(folder: Path, size: str) -> int:
    for step in ("save", "export"):
        command = [sys.executable, __file__, step, str(folder / size), size]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def main(folder: Path) -> None:
    sizes = [4 * math.prod(shape) for shape in array_shapes(CONFIG).values()]
    figures = {"params_bytes": sum(sizes), "largest_bytes": max(sizes), "small_bytes": peak_bytes(folder, "small")}
    print(json.dumps(figures | {"peak_bytes": peak_bytes(folder, "large")}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["save", folder, size]:
            save(Path(folder), CONFIGS[size])
        case ["export", folder, size]:
            export(Path(folder), CONFIGS[size])
        case [folder]:
            main(Path(folder))
