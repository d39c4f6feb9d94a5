"""A student of one layer that learns on its own answers too, shared by tests; as a process of a job:
`python -m tests.rl.toy_student FOLDER SHARE`, on one device of each."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lifecycle.core import distributed
from lifecycle.core.config import validate
from lifecycle.core.progress import Silent
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.parallel.placement import rows_of_process
from lifecycle.rl.sampling import Completions, Prompt
from lifecycle.rl.student import LogAnswers, StudentBatches
from lifecycle.testing.families import random_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import RowBatches
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.packing import ExampleRows
from lifecycle.training.served import served_by
from tests.rl.toy_policy import MODEL, SEED, TOKENIZER, one_device

TEACHER = MODEL.model_copy(update={"d_ff": 32})
NUM_IDS = 200


def settings(share: float = 0.5, **own: Any) -> DistillationConfig:
    """A stage of six steps, of which a share is on own answers."""
    tree: dict[str, Any] = {
        "teacher": "wide", "steps": 6, "seq_len": 32, "global_batch_size": 4, "log_every": 1,
        "on_policy": {"share": share, "max_completion_tokens": 6, "max_prompt_tokens": 8, "num_slots": 4},
        "optimizer": {"learning_rate": 0.01}, "checkpoint": {"every": 1}, "shared_ids": NUM_IDS,
    }  # fmt: skip
    return validate(DistillationConfig, tree | own)


def examples() -> list[EncodedRow]:
    """Of two turns, of which the last one is asked again."""
    made = []
    for number in range(9):
        turns = [(False, f"{number}?"), (True, "a"), (False, "and?"), (True, "b" * (1 + number % 3))]
        ids = [TOKENIZER.bos_id, *(i for _, text in turns for i in TOKENIZER.encode(text))]
        made.append(EncodedRow(ids, [False, *(is_said for is_said, text in turns for _ in text)]))
    return made


def batches_of(
    train: DistillationConfig,
    own: list[EncodedRow] | None = None,
    seed: int = SEED,
    held: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> StudentBatches:
    """`own` rows, or `examples`."""
    mesh = mesh or one_device()
    rows = own or examples()
    prompts = [Prompt(number, row.prompt_ids, "") for number, row in enumerate(rows)]
    blank = Model(MODEL, {}, TOKENIZER, ChatTemplate(TOKENIZER), SamplingParams(stop_ids=(TOKENIZER.eos_id,)))
    assert train.answering is not None
    completions = Completions(blank, train.answering, mesh, num_ids=train.shared_ids)
    taken = RowBatches.on_mesh(ExampleRows(rows, train.seq_len, seed), train.global_batch_size, mesh)
    return StudentBatches(taken, prompts, train, completions, served_by(MODEL, train, mesh), seed, held)


def trained(out: Path, axes: dict[str, int], share: float, progress: Silent) -> dict[str, Any]:
    """The stats of the job, whose devices are those of all its processes."""
    train, mesh = settings(share), build_mesh(MeshConfig(**axes))

    def placed(model: ModelConfig, seed: int) -> Params:
        return jax.jit(lambda: random_params(model, seed), out_shardings=tree_shardings(mesh, logical_axes(model)))()

    held = rows_of_process(mesh, train.global_batch_size, jax.process_index())
    objective, batches = build_objective(MODEL, train, {"teacher": TEACHER}), batches_of(train, held=held, mesh=mesh)
    params, others = placed(MODEL, 0), {"teacher": placed(TEACHER, 1)}
    job = TrainJob(MODEL, train, mesh, objective, batches, params, out, held=others)
    return run_job(job, progress, [LogAnswers(batches)])


def main() -> None:
    """Prints the loss, in the process that writes."""
    distributed.start()
    stats = trained(Path(sys.argv[1]), {"fsdp": 2}, float(sys.argv[2]), Silent())
    if distributed.is_writer():
        print(json.dumps({"loss": stats["loss"]}))


if __name__ == "__main__":
    main()
