"""A stage that learns, as far as its rows are concerned, and what readers of all kinds of rows have in common."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lifecycle.core.distributed import is_writer
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.stages.row_origins import epoch_of, read_origins
from lifecycle.stages.rows import rows_file, stage_encoding
from lifecycle.stages.stage import Inputs
from lifecycle.text.config import RowsConfig
from lifecycle.text.interface import Tokenizer
from lifecycle.text.rows import EXAMPLES, RowsReport, load_rows
from lifecycle.training.batches import BatchSource, RowBatches
from lifecycle.training.config import TrainConfig
from lifecycle.training.heldout import heldout_means
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import Origin
from lifecycle.training.objectives.objective import Objective, build_objective
from lifecycle.training.packing import RowSource

DROPPED_ROWS = "dropped_rows.json"


@dataclass(frozen=True)
class Asked:
    """A model that is asked before the first step, if its answers are not kept from before: the hash of its weights,
    and what loads it."""

    weights_hash: str
    load: Callable[[], tuple[ModelConfig, Params]]


@dataclass(frozen=True)
class Learner:
    """The stage that the rows are for. `measured`: its settings on held-out rows; `seeds`: of the row order, by kind;
    `start_hash`: hash of `start`'s weights."""

    train: TrainConfig
    model: ModelConfig
    mesh: Mesh
    measured: TrainConfig
    tokenizer: Tokenizer
    start: Origin
    start_hash: str
    seeds: Mapping[str, int]
    own: RowsConfig
    named: Mapping[str, tuple[ModelConfig, Params]] = field(default_factory=dict)  # other models, by setting
    asked: Mapping[str, Asked] = field(default_factory=dict)  # those that no step needs, by setting

    @property
    def held(self) -> Params:
        """The parameters of the models that steps run beside the stage's own."""
        return {name: self.named[name][1] for name in self.train.held}

    def objective(self, train: TrainConfig) -> Objective:
        """The objective with these settings of the stage."""
        return build_objective(self.model, train, {name: self.named[name][0] for name in train.held})


@dataclass(frozen=True)
class LearningRows:
    """Training rows, or where batches come from instead; the measurements between steps, and counts for the manifest.
    `epoch_rows`: how many rows an epoch has."""

    rows: RowSource | None
    epoch_rows: float
    hooks: tuple[Hook, ...]
    facts: dict[str, Any]
    batches: BatchSource | None = None

    def batches_on(self, mesh: Mesh, global_batch_size: int) -> BatchSource:
        """The batches of a job on a mesh."""
        if self.batches is not None:
            return self.batches
        assert self.rows is not None
        return RowBatches.on_mesh(self.rows, global_batch_size, mesh)


def rows_seen(train: TrainConfig) -> float:
    """How many rows, from the first on, the stage's steps may see. A run that goes back passes over some, and one that
    goes on from another's step began behind them: both may see any."""
    may_see_any = train.faults.policy == "rollback" or "@" in (train.start or "") or not train.steps
    return math.inf if may_see_any else train.steps * train.global_batch_size


def encoded_rows(
    learner: Learner, inputs: Inputs, kind: str, split: str, progress: Progress
) -> tuple[list[Any], RowsReport]:
    """The rows of a kind and a side as a `RowEncoder` encodes them, those to train on in the shares of their files."""
    path = rows_file(inputs["rows"].path, kind, split)
    origins = read_origins(path, inputs["rows"].stats, kind)
    most = learner.own.max_dropped if split == "train" else 1.0
    with stage_encoding(kind, learner.train, learner.own, inputs, learner.tokenizer) as encode:
        rows, report = load_rows(path, encode, learner.train.longest_row, learner.train.truncation, most, origins.name)
    if report.dropped or report.truncated:
        progress.note(f"{kind} rows, {split}: {report.said}")
    if split == "train" and origins.weights:
        order = epoch_of([origins.file_of(name) for name in report.names], origins.weights, kind)
        rows, report.names = [rows[at] for at in order], [report.names[at] for at in order]
    return rows, report


def heldout_measurement(learner: Learner, heldout: RowSource) -> Evaluate:
    """Measures the objective's own means over held-out rows."""
    train = learner.train
    size = train.global_batch_size
    num_rows = -(-heldout.num_rows // size) * size  # an objective that sorts a batch has all of them
    objective = learner.objective(learner.measured.model_copy(update={"global_batch_size": num_rows}))
    means = heldout_means(learner.model, objective, heldout, size, learner.mesh, learner.held)
    return Evaluate(train.eval_every, means.measure, means.prepare)


def list_dropped(out: Path, reports: Mapping[str, RowsReport]) -> None:
    """Lists the dropped rows, with reasons, next to the weights that did not see them."""
    if is_writer():
        write_text(out / DROPPED_ROWS, json.dumps([report.plain() for report in reports.values()], indent=1))


def kept(what: str, reports: Mapping[str, RowsReport]) -> dict[str, Any]:
    """How many training rows there are and how many were dropped, for the manifest."""
    report = reports["train"]
    facts = {what: len(report.names), "dropped": dict(report.dropped), "dropped_examples": report.examples[:EXAMPLES]}
    return facts | ({"truncated": report.truncated} if report.truncated else {})
