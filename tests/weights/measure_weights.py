"""Measures the host memory that a checkpoint of 1.0 GB takes: `python measure_weights.py FOLDER`.

Four processes of one job load it over a mesh of four devices, each its own quarter; then one process imports it,
that is, reads and writes all of it. The weights are zeros, a file with holes: it takes no room, and memory does not
care. The last line printed is JSON: `checkpoint_bytes`, `load_peak_bytes` (a figure for each process) and
`import_peak_bytes`, as the kernel's high-water mark of resident memory (`ru_maxrss`).
"""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import ml_dtypes
import numpy as np

from lifecycle.cli.import_weights import import_safetensors
from lifecycle.inference.bundle import load_params
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.arrays import array_shapes
from lifecycle.weights.families.layout import published_tensors
from lifecycle.weights.published import WEIGHTS, family_of, write_config

PROCESSES = 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CONFIG = ModelConfig(
    vocab_size=32_000, d_model=4096, d_ff=7168, num_layers=2, num_heads=32, num_kv_heads=8, head_dim=128,
)  # fmt: skip


def write_checkpoint(folder: Path) -> int:
    """A bundle of zeros; returns the size of its weights."""
    folder.mkdir()
    write_config(CONFIG, folder, BFLOAT16)
    ByteTokenizer().save(folder)
    tensors, end = {}, 0
    for name, tensor in published_tensors(CONFIG, family_of(CONFIG).layout, array_shapes(CONFIG)).items():
        begin, end = end, end + int(np.prod(tensor.shape)) * BFLOAT16.itemsize
        tensors[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    header = json.dumps(tensors).encode()
    with open(folder / WEIGHTS, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return end


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(folder: Path, port: str, number: str) -> None:
    """What one process of the job does: it keeps its part of the weights, in their own dtype."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(number))
    config = CONFIG.model_copy(update={"compute_dtype": "bfloat16"})
    params = load_params(config, folder, build_mesh(MeshConfig(fsdp=PROCESSES)))  # as a server of several hosts does
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    print(json.dumps({"peak": peak_bytes(), "held": held}))


def main(folder: Path) -> None:
    checkpoint = folder / "checkpoint"
    size = write_checkpoint(checkpoint)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__]
    jobs = [
        subprocess.Popen([*command, "load", str(checkpoint), port, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(PROCESSES)
    ]
    outputs = [job.communicate()[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs)
    loaded = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert all(each["held"] > size / PROCESSES for each in loaded)
    done = subprocess.run([*command, "import", str(checkpoint), str(folder / "bundle")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = {"load_peak_bytes": [each["peak"] for each in loaded], "import_peak_bytes": int(done.stdout.split()[-1])}
    print(json.dumps({"checkpoint_bytes": size, **figures}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["load", folder, port, number]:
            load(Path(folder), port, number)
        case ["import", source, out]:
            import_safetensors(Path(source), Path(out))
            print(peak_bytes())
        case [folder]:
            main(Path(folder))
