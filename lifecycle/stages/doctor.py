"""What a training stage will make of its rows: as it sees them, how long they are, how they are packed.

Nothing is trained. What must hold: rows are read, encoded, fitted and packed by the functions that the stage itself
uses, so what is found here is what happens there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lifecycle.core.artifact import Artifact
from lifecycle.core.progress import Progress
from lifecycle.rl.config import RolloutConfig
from lifecycle.stages import keys
from lifecycle.stages.chain import bring_up_to_date, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.own_rows import SIDES, TRAIN
from lifecycle.stages.row_origins import epoch_of, read_origins
from lifecycle.stages.rows import rows_file, stage_encoding
from lifecycle.stages.storage import readable
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_encoder import Encoded, UnusableRow, segments_of
from lifecycle.text.row_files import RowError, read_rows
from lifecycle.text.rows import RowsReport, encode_row, fit
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.config import TrainConfig
from lifecycle.training.packing import num_packed_rows
from lifecycle.training.wrapped_rows import num_wrapped_rows

INPUTS = ("tokenizer", "rows")  # stages
QUANTILES = (0, 0.5, 0.9, 0.99, 1)
# Of a suggested `seq_len`: it is a multiple of this, and this share of the rows may be longer.
STEP, MOST_LEFT_OUT = 128, 0.01


@dataclass(frozen=True)
class Side:
    """The rows of a side: what becomes of them, those that are kept, and of all that can be encoded the tokens of all
    their segments and the learned ones, before any is cut."""

    report: RowsReport
    kept: Sequence[Encoded]
    lengths: Sequence[int]
    learned: Sequence[int]

    def quantiles(self) -> list[int]:
        """The lengths at `QUANTILES`, rounded up to a length that occurs."""
        return [int(q) for q in np.quantile(self.lengths, QUANTILES, method="higher")]

    @property
    def learned_share(self) -> float:
        """The share of the tokens that is learned."""
        return sum(self.learned) / max(1, sum(self.lengths))


@dataclass(frozen=True)
class Packing:
    """An epoch of a stage's training rows, packed: how many rows of its batches, and how full they are."""

    examples: int
    rows: int
    fill: float


@dataclass(frozen=True)
class Examination:
    """A stage and its rows. `made` are the stats of the rows' artifact."""

    stage: str
    train: TrainConfig
    kind: str
    tokenizer: Tokenizer
    made: dict[str, Any]
    compared: int  # files of evaluation rows, which the user's own rows must not overlap
    sides: dict[str, Side]
    packing: Packing | None  # None: no row is left to train on
    suggested: int  # `seq_len`, or `max_prompt_tokens`
    longer: int  # training rows that are longer than that

    @property
    def own(self) -> dict[str, Any]:
        """What became of the user's own rows of this kind; empty without any."""
        return self.made.get("own", {}).get(self.kind, {})


def examine(config: RunConfig, stage: str, progress: Progress) -> Examination:
    """Examines a stage's rows; makes the tokenizer and the rows, if they are not there, however many are dropped.

    Raises `ConfigError` for an unknown stage, and `RowError` for one without rows and for rows that are broken.
    """
    config.require_stage(stage)
    kind, train = config.rows_of(stage)[0], config.train[stage]
    if kind == "tokens":
        raise RowError(f"train.{stage} reads token shards, which are cut to seq_len; the doctor examines rows")
    inputs = _inputs(config, progress)
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    sides: dict[str, Side] = {}
    order: list[int] = []
    for side in SIDES:
        path = rows_file(inputs["rows"].path, kind, side)
        origins = read_origins(path, inputs["rows"].stats, kind)
        rows = [(origins.name(line), row) for line, row in read_rows(path)]
        with stage_encoding(kind, train, config.rows, inputs, tokenizer) as encode:
            sides[side] = _side(f"{side} rows", [(n, encode_row(row, encode, n)) for n, row in rows], train)
        if side == TRAIN and sides[side].kept:
            order = epoch_of([origins.file_of(name) for name in sides[side].report.names], origins.weights, kind)
    answer = train.max_completion_tokens if isinstance(train, RolloutConfig) else 0
    suggested, longer = suggested_length(sides[TRAIN].lengths, config.model_of(stage).max_seq_len - answer)
    packing = packed([_size(sides[TRAIN].kept[at]) for at in order], train.seq_len, train.wraps) if order else None
    made, compared = inputs["rows"].stats, sum(map(len, keys.evaluation_files(config).values()))
    return Examination(stage, train, kind, tokenizer, made, compared, sides, packing, suggested, longer)


def _inputs(config: RunConfig, progress: Progress) -> dict[str, Artifact]:
    """The tokenizer and the rows: those of the run or of an earlier examination, which are only read, so that a job may
    go on beside it; else they are made."""
    rows = config.rows.model_copy(update={"max_dropped": 1.0})
    lenient = config.model_copy(update={"rows": rows})
    for made in (config, lenient):
        found = {state.stage.name: state.artifact for state in states(made, INPUTS)}
        finished = {name: artifact for name in INPUTS if (artifact := found[name]) is not None}
        if len(finished) == len(INPUTS):
            for artifact in finished.values():
                readable(made).fetch(artifact)
            return finished
    return bring_up_to_date(lenient, INPUTS, progress)


def _side(name: str, rows: Sequence[tuple[str, Encoded]], train: TrainConfig) -> Side:
    report, kept = RowsReport(name), []
    lengths, learned = [], []
    for place, encoded in rows:
        report.rows += 1
        lengths.append(_size(encoded))
        learned.append(sum(sum(segment.loss_mask) for segment in segments_of(encoded)))
        try:
            fitted = fit(encoded, train.longest_row, train.truncation)
        except UnusableRow as reason:
            report.drop(place, str(reason))
            continue
        report.truncated += fitted is not encoded
        report.keep(place)
        kept.append(fitted)
    return Side(report, kept, lengths, learned)


def _size(encoded: Encoded) -> int:
    return sum(len(segment.ids) for segment in segments_of(encoded))


def packed(lengths: Sequence[int], seq_len: int, wraps: bool) -> Packing:
    """An epoch of units of these lengths, packed as the stage packs them."""
    rows = (num_wrapped_rows if wraps else num_packed_rows)(lengths, seq_len)
    return Packing(len(lengths), rows, sum(lengths) / (rows * seq_len))


def suggested_length(lengths: Sequence[int], most: int) -> tuple[int, int]:
    """(the smallest multiple of `STEP` that all but `MOST_LEFT_OUT` of the rows fit, at most `most`; how many do not
    fit it)."""
    needed = sorted(lengths)[-1 - int(MOST_LEFT_OUT * len(lengths))]
    length = min(most, -(-needed // STEP) * STEP)
    return length, sum(size > length for size in lengths)
