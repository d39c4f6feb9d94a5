"""Rows of preferences: pairs of answers, and answers with a label, with a reference's log-probabilities if needed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifecycle.core.config import digest
from lifecycle.core.progress import Progress
from lifecycle.model.config import Precision
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
from lifecycle.text.row_encoder import EncodedGroup, EncodedRow
from lifecycle.text.rows import RowsReport
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.packing import RowSource
from lifecycle.training.preference import DpoConfig
from lifecycle.training.reference import ReferenceRows, ReferenceSettings, reference_logprobs
from lifecycle.training.served import served_by
from lifecycle.training.tables import Table


def pair_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Preference pairs packed into rows."""

    def groups(encoded: Sequence[EncodedGroup]) -> list[Group]:
        reads = learner.train.reads_margin  # else the margins are another stage's, without which the rows stage ends
        margins = [{name: value * 2 for name, value in pair.values.items() if reads} for pair in encoded]
        return [Group(pair.segments, margin) for pair, margin in zip(encoded, margins, strict=True)]

    return _group_rows(learner, inputs, "pairs", groups, out, progress)


def labelled_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Answers with labels; beside each, if the objective measures them, its prompt with another row's answer."""

    def groups(encoded: Sequence[EncodedGroup]) -> list[Group]:
        rows = [answer.segments[0] for answer in encoded]
        labels = [{"label": answer.values["label"]} for answer in encoded]
        others = mismatched(rows, learner.train.seq_len) if learner.train.has_others else [()] * len(rows)
        return [Group([row], label, other) for row, label, other in zip(rows, labels, others, strict=True)]

    return _group_rows(learner, inputs, "labelled", groups, out, progress)


def mismatched(rows: Sequence[EncodedRow], seq_len: int) -> list[tuple[EncodedRow]]:
    """Each row's prompt with the answer of the row before, the first with the last one's (as KTO's authors and TRL
    pair them, there within a batch); an answer that does not fit is cut at its end."""
    pairs = zip(rows, [*rows[-1:], *rows[:-1]], strict=True)
    return [(_with_answer_of(row, other, seq_len),) for row, other in pairs]


def _with_answer_of(row: EncodedRow, other: EncodedRow, seq_len: int) -> EncodedRow:
    begin, end = row.loss_mask.index(True), other.loss_mask.index(True)
    ids = [*row.ids[:begin], *other.ids[end:]][:seq_len]
    return EncodedRow(ids, ([False] * begin + other.loss_mask[end:])[:seq_len])


def _group_rows(
    learner: Learner,
    inputs: Inputs,
    kind: str,
    groups_of: Callable[[Any], list[Group]],
    out: Path,
    progress: Progress,
) -> LearningRows:
    train = learner.train
    needs_reference = train.needs_reference and not train.has_own_reference
    rows: dict[str, RowSource] = {}
    reports: dict[str, RowsReport] = {}
    for split in ("train", "heldout"):
        encoded, reports[split] = encoded_rows(learner, inputs, kind, split, progress)
        groups = groups_of(encoded)
        packed = rows[split] = GroupRows(groups, train.seq_len, learner.seeds[kind], reports[split].name)
        if needs_reference:
            precision = train.precision if split == "train" else None  # as the objective computes these rows
            num_rows = int(min(rows_seen(train) if split == "train" else math.inf, packed.num_rows))
            progress.start(f"reference, {split} rows", num_rows)
            rows[split] = ReferenceRows(packed, _reference(learner, packed, precision, num_rows, out, progress))
    if needs_reference:
        progress.start("steps")
    list_dropped(out, reports)
    hooks = (heldout_measurement(learner, rows["heldout"]),)
    return LearningRows(rows["train"], rows["train"].num_rows, hooks, kept(kind, reports))


def _reference(
    learner: Learner, rows: GroupRows, precision: Precision | None, num_rows: int, out: Path, progress: Progress
) -> Table:
    """Log-probabilities of the groups in the first rows under the initial weights, as the stage's steps see them."""
    assert isinstance(learner.start, dict), "a reference needs trained weights"
    train, mesh = learner.train, learner.mesh
    alpha = train.length_alpha if isinstance(train, DpoConfig) else None
    identity = [learner.start_hash, rows.fingerprint, precision, train.weights, alpha]
    path = out / f"reference-{digest(identity)[:16]}.npz"
    params = served_by(learner.model, train, mesh)(learner.start)
    settings = ReferenceSettings(train.loss_chunks, precision, alpha)
    size = train.global_batch_size
    return reference_logprobs(learner.model, params, rows, size, mesh, path, progress, settings, num_rows)
