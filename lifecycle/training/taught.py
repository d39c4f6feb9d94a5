"""What a teacher says of rows, found once before the first step: at each learned token its likeliest ids.

What must hold: the numbers are those that the teacher has in a step, to float32's precision; so it is computed with its
own weights in its compute dtype, and by blocks, without logits `[B, T, V]`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.progress import Progress
from lifecycle.core.typing import Array, Batch
from lifecycle.kernels.top_logprobs import Among, top_logprobs
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_train
from lifecycle.model.embedding import head
from lifecycle.model.params import Params
from lifecycle.model.pipeline import own_rows
from lifecycle.parallel.columns import declare
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import in_plain_order, on_mesh
from lifecycle.text.taught_rows import Told
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.heldout import each_batch
from lifecycle.training.packing import ExampleRows, Row
from lifecycle.training.state import param_specs
from lifecycle.training.tables import Table, TableRows, filled_table

# Columns `[T, K]`: ids, the likeliest first, -1 where there are none; and their log-probabilities at the temperature.
TEACHER_IDS, TEACHER_LOGPROBS = "teacher_ids", "teacher_logprobs"
declare("token", TEACHER_IDS, TEACHER_LOGPROBS)


@dataclass(frozen=True)
class Teacher:
    """A model to ask, loaded when it is, and how a stage asks it."""

    load: Callable[[], tuple[ModelConfig, Params]]
    train: DistillationConfig

    def says(self, config: ModelConfig, params: Params, batch: Batch) -> dict[str, Array]:
        """Both columns of this device's rows."""
        train = self.train
        hidden, _ = forward_train(config, params, batch["tokens"], batch["positions"], batch["segment_ids"])
        wanted, among = own_rows(batch["loss_mask"]) > 0, Among(train.temperature, train.shared_ids)
        assert train.loss_top_k is not None
        asked = train.loss_top_k, wanted, among, config.logits_soft_cap, train.loss_chunks
        ids, logprobs = top_logprobs(hidden, head(config, params), *asked)
        return {TEACHER_IDS: ids, TEACHER_LOGPROBS: logprobs}


def taught_table(
    teacher: Teacher, rows: ExampleRows, batch_size: int, mesh: Mesh, path: Path, progress: Progress, num_rows: int
) -> Table:
    """What the teacher says of all learned tokens in the first `num_rows` rows, `[tokens, K]`; of further ones nothing.
    It is kept in `path`, as `filled_table` says, and then the teacher is not loaded."""
    num = teacher.train.loss_top_k
    assert num is not None

    def parts(done: int) -> Iterator[tuple[np.ndarray, Table]]:
        config, params = teacher.load()
        specs = dict.fromkeys((TEACHER_IDS, TEACHER_LOGPROBS), spec("loss_rows", "seq"))

        def says(params: Params, batch: Batch) -> dict[str, Array]:
            return teacher.says(config, params, batch)

        found = each_batch(on_mesh(says, mesh, param_specs(config), specs), rows, batch_size, mesh, first=done)
        for number, (host, values) in enumerate(found(params)):
            first = done + number * batch_size
            learned = [rows.learned(row) for row in range(first, min(first + batch_size, rows.num_rows))]
            is_learned = host["loss_mask"] > 0
            context, arrays = mesh.shape["context"], {name: np.asarray(column) for name, column in values.items()}
            plain = {name: in_plain_order(column, context)[is_learned] for name, column in arrays.items()}
            yield np.concatenate(learned), plain

    shape = (rows.num_learned, num)
    empty = {TEACHER_IDS: np.full(shape, -1, np.int32), TEACHER_LOGPROBS: np.zeros(shape, np.float32)}
    return filled_table(path, empty, parts, batch_size, num_rows, progress)


def given_table(each: Sequence[Told], num: int) -> Table:
    """What examples have of their learned tokens themselves, `[tokens, num]`."""
    shape = (sum(len(told.ids) for told in each), num)
    table = {TEACHER_IDS: np.full(shape, -1, np.int32), TEACHER_LOGPROBS: np.zeros(shape, np.float32)}
    begin = 0
    for told in each:
        end = begin + len(told.ids)
        for column, values in zip(table.values(), told, strict=True):
            column[begin:end, : values.shape[1]] = values
        begin = end
    return table


class TaughtRows(TableRows[ExampleRows]):
    """Rows with what a teacher says of their learned tokens, `[T, K]`, looked up in a table."""

    def row(self, index: int) -> Row:
        """A row with the teacher's columns."""
        row, learned = dict(self._rows.row(index)), self._rows.learned(index)
        is_learned, num = row["loss_mask"] > 0, self._table[TEACHER_IDS].shape[1]
        row |= blank_columns(len(is_learned), num)
        for name, column in self._table.items():
            row[name][is_learned] = column[learned]
        return row


def blank_columns(length: int, num: int) -> Row:
    """The columns of a row of which nothing is known."""
    shape = (length, num)
    return {TEACHER_IDS: np.full(shape, -1, np.int32), TEACHER_LOGPROBS: np.zeros(shape, np.float32)}
