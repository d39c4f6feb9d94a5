"""One process of a job that asks a teacher in two goes: `python -m tests.multidevice.taught_twice OUT`. Each process
has a folder of its own, and prints what it knows at the end."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from lifecycle.core import distributed
from lifecycle.core.progress import Silent
from lifecycle.model.params import logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun
from lifecycle.testing.tiny_rows import SEQ_LEN, TEACHER, example
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.packing import ExampleRows
from lifecycle.training.tables import Table
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS, Teacher, taught_table

SIZE = 4


def asked_in_two_goes(out: Path) -> Table:
    """Of all rows; the second go continues the first."""
    mesh, draw = build_mesh(MeshConfig(fsdp=2)), np.random.default_rng(0)
    rows = ExampleRows([example(draw, [1, 2], int(size)) for size in draw.integers(1, 14, 40)], SEQ_LEN, seed=0)
    train = TinyRun(objective="distillation").train().model_copy(update={"loss_top_k": 3})
    assert isinstance(train, DistillationConfig)
    params = jax.jit(lambda: random_params(TEACHER, 1), out_shardings=tree_shardings(mesh, logical_axes(TEACHER)))()
    teacher, path = Teacher(lambda: (TEACHER, params), train), out / "t.npz"
    out.mkdir(parents=True)
    taught_table(teacher, rows, SIZE, mesh, path, Silent(), SIZE)
    return taught_table(teacher, rows, SIZE, mesh, path, Silent(), rows.num_rows)


def main() -> None:
    """Prints the table."""
    distributed.start()
    table = asked_in_two_goes(Path(sys.argv[1]) / str(jax.process_index()))
    print(json.dumps([table[TEACHER_IDS].tolist(), table[TEACHER_LOGPROBS].tolist()]))


if __name__ == "__main__":
    main()
