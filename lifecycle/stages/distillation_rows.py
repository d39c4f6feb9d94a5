"""Rows of a stage that learns a teacher's distributions: the assistant's tokens of chat rows, what the teacher says of
them if it is asked before, and the student's own answers to their prompts."""

import math
from collections.abc import Sequence
from pathlib import Path

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.progress import Progress
from lifecycle.stages.learner import (
    Learner,
    LearningRows,
    encoded_rows,
    heldout_measurement,
    kept,
    list_dropped,
    rows_seen,
)
from lifecycle.stages.stage import Inputs
from lifecycle.stages.student_rows import student_batches
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.text.rows import RowsReport
from lifecycle.training.distilling import DistillationConfig, OfflineDistillationConfig
from lifecycle.training.packing import ExampleRows, RowSource
from lifecycle.training.taught import TaughtRows, Teacher, given_table, taught_table


def distillation_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Chat rows, packed."""
    train = learner.train
    assert isinstance(train, DistillationConfig)
    rows: dict[str, RowSource] = {}
    reports: dict[str, RowsReport] = {}
    examples: dict[str, list[EncodedRow]] = {}
    for split in ("train", "heldout"):
        examples[split], reports[split] = encoded_rows(learner, inputs, "chat", split, progress)
        require_shared(train, examples[split], reports[split])
        packed = ExampleRows(examples[split], train.seq_len, learner.seeds["chat"], reports[split].name)
        is_asked = train.loss_top_k is not None
        rows[split] = _taught(learner, train, packed, split, out, progress) if is_asked else packed
    list_dropped(out, reports)
    epoch_rows = train.epoch_rows(len(examples["train"]), rows["train"].num_rows)
    measured, facts = heldout_measurement(learner, rows["heldout"]), kept("examples", reports)
    if train.on_policy is None:
        return LearningRows(rows["train"], epoch_rows, (measured,), facts)
    of_student = rows["train"], examples["train"], reports["train"]
    batches, logged = student_batches(learner, inputs, *of_student, progress)
    return LearningRows(None, epoch_rows, (logged, measured), facts, batches)


def taught_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Rows of tokens, packed, with what they have of a teacher's distributions."""
    train = learner.train
    assert isinstance(train, OfflineDistillationConfig)
    rows: dict[str, TaughtRows] = {}
    reports: dict[str, RowsReport] = {}
    for split in ("train", "heldout"):
        examples, reports[split] = encoded_rows(learner, inputs, "taught", split, progress)
        packed = ExampleRows(examples, train.seq_len, learner.seeds["taught"], reports[split].name)
        rows[split] = TaughtRows(packed, given_table([example.told for example in examples], train.loss_top_k))
    list_dropped(out, reports)
    hooks = (heldout_measurement(learner, rows["heldout"]),)
    return LearningRows(rows["train"], rows["train"].num_rows, hooks, kept("examples", reports))


def _taught(
    learner: Learner, train: DistillationConfig, rows: ExampleRows, split: str, out: Path, progress: Progress
) -> TaughtRows:
    """The rows with the likeliest ids of the teacher, which is asked if that has not been done."""
    asked, mesh = learner.asked["teacher"], learner.mesh
    num_rows = int(min(rows_seen(train) if split == "train" else math.inf, rows.num_rows))
    progress.start(f"teacher, {split} rows", num_rows)
    settings = [train.loss_top_k, train.temperature, train.shared_ids]
    path = out / f"teacher-{digest([asked.weights_hash, rows.fingerprint, *settings])[:16]}.npz"
    teacher = Teacher(asked.load, train)
    table = taught_table(teacher, rows, train.global_batch_size, mesh, path, progress, num_rows)
    progress.start("steps")
    return TaughtRows(rows, table)


def require_shared(train: DistillationConfig, examples: Sequence[EncodedRow], report: RowsReport) -> None:
    """Raises `ConfigError` if a row has an id that is not the same token in the teacher's vocabulary."""
    shared = train.shared_ids
    wrong = [] if shared is None else [i for i, example in enumerate(examples) if max(example.ids) >= shared]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} of {len(examples)} rows, the first of them {report.name(wrong[0])}, have ids from "
            f"shared_ids={shared} on, which the teacher does not know; leave them out, or use a tokenizer and a "
            "template whose tokens both models have"
        )
