"""The rows that a training stage learns from, by kind, and what is measured on held-out rows of that kind.

| kind | read from | held out |
|---|---|---|
| `tokens` | token shards | bits per byte of the first held-out documents |
| `chat` | chat rows, with a share of replayed token rows | the objective's means |
| `pairs` | preference pairs, with a reference's log-probabilities if the objective needs them | the same |
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import digest
from lifecycle.core.distributed import is_writer
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.params import Params
from lifecycle.stages.row_origins import epoch_of, read_origins
from lifecycle.stages.rows import row_encoder, rows_file
from lifecycle.stages.stage import Inputs
from lifecycle.text.config import RowsConfig
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_encoder import Encoded
from lifecycle.text.row_files import RowData
from lifecycle.text.rows import EXAMPLES, RowsReport, load_rows
from lifecycle.training.config import NextTokenConfig, SftConfig, TrainConfig
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.heldout import heldout_means
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import Origin
from lifecycle.training.mixture import Mixture
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.packing import ExampleRows, PairRows, RowSource
from lifecycle.training.reference import ReferenceRows, reference_logprobs
from lifecycle.training.scoring import PackedPieces, document_pieces, logprobs, nats_of, row_length
from lifecycle.training.served import served_by
from lifecycle.training.token_rows import TokenRows

BITS = "heldout_bits_per_byte"  # of all measured text; with `.SOURCE` behind it, of one source's
DROPPED_ROWS = "dropped_rows.json"


@dataclass(frozen=True)
class Learner:
    """The stage that the rows are for. `seeds`: of the row order, by kind; `start_hash`: hash of `start`'s weights."""

    train: TrainConfig
    model: ModelConfig
    mesh: Mesh
    objective: Objective
    tokenizer: Tokenizer
    start: Origin
    start_hash: str
    seeds: Mapping[str, int]
    own: RowsConfig


@dataclass(frozen=True)
class LearningRows:
    """Training rows, the measurement on held-out ones, and their counts for the stage's manifest. `epoch_rows`: how
    many rows an epoch has."""

    rows: RowSource
    epoch_rows: float
    hooks: tuple[Hook, ...]
    facts: dict[str, Any]


def read_learning_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """The rows of the learner's objective; `out` gets the list of dropped rows, and reference tables."""
    return READERS[objective_kind(learner.train.objective).rows](learner, inputs, out, progress)


def token_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Rows cut from the token shards."""
    train = learner.train
    assert isinstance(train, NextTokenConfig)
    shards = training_shards(inputs["tokens"], learner.tokenizer)
    heldout = TokenShards(inputs["tokens"].path, "heldout", learner.tokenizer)
    rows = TokenRows(shards, train.seq_len, train.mixture, learner.seeds["tokens"])
    evaluation = heldout_bits(learner.model, train, heldout, learner.tokenizer.byte_lengths, learner.mesh)
    hooks = () if evaluation is None else (evaluation,)
    return LearningRows(rows, rows.num_rows, hooks, {"corpus_tokens": shards.num_tokens})


def training_shards(tokens: Artifact, tokenizer: Tokenizer) -> TokenShards:
    """The token shards to train on; they know the documents that they were made from by name."""
    return TokenShards(tokens.path, "train", tokenizer, tokens.path.parent / tokens.manifest.inputs["documents"])


def require_sources(stages: Iterable[TrainConfig], shards: TokenShards) -> None:
    """Raises `ShardError` if any stage's mixture names a source without documents; called before training."""
    for name in {name for train in stages if isinstance(train, NextTokenConfig) for name in train.mixture}:
        shards.of_source(name)


def chat_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Conversations packed into rows, mixed with replayed token rows according to the settings."""
    train, packed, reports = learner.train, {}, {}
    for split in ("train", "heldout"):
        examples, reports[split] = encoded_rows(learner, inputs, "chat", split, progress)
        packed[split] = ExampleRows(examples, train.seq_len, learner.seeds["chat"], reports[split].name)
    _list_dropped(out, reports)
    rows: RowSource = packed["train"]
    epoch_rows = rows.num_rows
    if isinstance(train, SftConfig) and train.replay_share:
        shards = training_shards(inputs["tokens"], learner.tokenizer)
        replay = DocumentRows(shards, train.seq_len, learner.seeds["tokens"])
        rows = Mixture({"chat": rows, "replay": replay}, {"chat": 1 - train.replay_share, "replay": train.replay_share})
        epoch_rows /= 1 - train.replay_share
    return LearningRows(rows, epoch_rows, (_means(learner, packed["heldout"]),), _kept("examples", reports))


def pair_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Preference pairs packed into rows."""
    train = learner.train
    needs_reference = objective_kind(train.objective).needs_reference
    rows: dict[str, RowSource] = {}
    reports: dict[str, RowsReport] = {}
    for split in ("train", "heldout"):
        groups, reports[split] = encoded_rows(learner, inputs, "pairs", split, progress)
        pairs = [(chosen, rejected) for chosen, rejected in (group.segments for group in groups)]
        packed = rows[split] = PairRows(pairs, train.seq_len, learner.seeds["pairs"], reports[split].name)
        if needs_reference:
            progress.start(f"reference, {split} rows", packed.num_rows)
            precision = train.precision if split == "train" else None  # as the objective computes these rows
            rows[split] = ReferenceRows(packed, _reference(learner, packed, precision, out, progress))
    if needs_reference:
        progress.start("steps")
    _list_dropped(out, reports)
    epoch_rows = rows["train"].num_rows
    return LearningRows(rows["train"], epoch_rows, (_means(learner, rows["heldout"]),), _kept("pairs", reports))


def encoded_rows(
    learner: Learner, inputs: Inputs, kind: str, split: str, progress: Progress
) -> tuple[list[Any], RowsReport]:
    """The rows of a kind and a side as a `RowEncoder` encodes them, those to train on in the shares of their files."""
    path = rows_file(inputs["rows"].path, kind, split)
    origins = read_origins(path, inputs["rows"].stats, kind)
    encode: Callable[[RowData], Encoded] = row_encoder(learner.own, inputs, learner.tokenizer).encoding(kind)
    most = learner.own.max_dropped if split == "train" else 1.0
    rows, report = load_rows(path, encode, learner.train.seq_len, learner.train.truncation, most, origins.name)
    if report.dropped or report.truncated:
        progress.note(f"{kind} rows, {split}: {report.said}")
    if split == "train" and origins.weights:
        order = epoch_of([origins.file_of(name) for name in report.names], origins.weights, kind)
        rows, report.names = [rows[at] for at in order], [report.names[at] for at in order]
    return rows, report


READERS: dict[str, Callable[[Learner, Inputs, Path, Progress], LearningRows]] = {
    "tokens": token_rows,
    "chat": chat_rows,
    "pairs": pair_rows,
}


def heldout_bits(
    model: ModelConfig, train: NextTokenConfig, heldout: TokenShards, byte_lengths: np.ndarray, mesh: Mesh
) -> Evaluate | None:
    """Bits per byte on the first held-out documents of each source, about `train.eval_bytes` in all and the same amount
    of each, in windows of `train.seq_len`. None without held-out documents."""
    domains: dict[str, np.ndarray] = {}  # by source, its documents' numbers in `pieces`
    pieces: list[np.ndarray] = []
    for name, documents in heldout.domains().items():
        first = len(pieces)
        pieces += _first_bytes(heldout, documents, byte_lengths, train.eval_bytes // len(heldout.domains()))
        domains[name] = np.arange(first, len(pieces))
    if not pieces:
        return None

    sizes = np.array([byte_lengths[piece].sum() for piece in pieces])
    total = int(sizes.sum())
    owners, windows = document_pieces(pieces, train.seq_len)
    packed = PackedPieces(logprobs, model, windows, row_length(windows, train.seq_len, mesh), mesh)

    def measure(params: Params) -> dict[str, float]:
        nats = nats_of(len(pieces), owners, packed.measured(params))
        bits = np.array(nats) / math.log(2)
        of_domains = {f"{BITS}.{name}": float(bits[docs].sum() / sizes[docs].sum()) for name, docs in domains.items()}
        return {BITS: sum(nats) / math.log(2) / total} | (of_domains if len(domains) > 1 else {})

    return Evaluate(train.eval_every, measure, packed.prepare)


def _first_bytes(
    heldout: TokenShards, documents: np.ndarray, byte_lengths: np.ndarray, size: int
) -> Iterator[np.ndarray]:
    """Yields documents until they have `size` bytes, each cut to a quarter of that, so that no single one dominates."""
    total = 0
    for number in documents:
        ids = heldout[int(number)]
        ends = np.searchsorted(np.cumsum(byte_lengths[ids]), size // 4, side="right")
        yield ids[: max(2, ends)]
        total += int(byte_lengths[ids[: max(2, ends)]].sum())
        if total >= size:
            return


def _means(learner: Learner, heldout: RowSource) -> Evaluate:
    """Measures the objective's own means over held-out rows."""
    train = learner.train
    means = heldout_means(learner.model, learner.objective, heldout, train.global_batch_size, learner.mesh)
    return Evaluate(train.eval_every, means.measure, means.prepare)


def _reference(
    learner: Learner, rows: PairRows, precision: Precision | None, out: Path, progress: Progress
) -> np.ndarray:
    """Log-probabilities of every pair under the initial weights, as the stage's steps see them."""
    assert isinstance(learner.start, dict), "a reference needs trained weights"
    train, mesh = learner.train, learner.mesh
    path = out / f"reference-{digest([learner.start_hash, rows.fingerprint, precision, train.weights])[:16]}.npz"
    params = served_by(learner.model, train, mesh)(learner.start)
    settings = mesh, path, progress, train.loss_chunks, precision
    return reference_logprobs(learner.model, params, rows, train.global_batch_size, *settings)


def _list_dropped(out: Path, reports: Mapping[str, RowsReport]) -> None:
    """Lists the dropped rows, with reasons, next to the weights that did not see them."""
    if is_writer():
        write_text(out / DROPPED_ROWS, json.dumps([report.plain() for report in reports.values()], indent=1))


def _kept(what: str, reports: Mapping[str, RowsReport]) -> dict[str, Any]:
    report = reports["train"]
    facts = {what: len(report.names), "dropped": dict(report.dropped), "dropped_examples": report.examples[:EXAMPLES]}
    return facts | ({"truncated": report.truncated} if report.truncated else {})
