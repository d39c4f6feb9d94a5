"""The rows that a training stage learns from, by kind, and what is measured on held-out rows of that kind.

| kind | read from | held out |
|---|---|---|
| `tokens` | token shards | bits per byte of the first held-out documents |
| `chat` | chat rows, with a share of replayed token rows | the objective's means |
| `steps` | answers in steps, each right or wrong | the same |
| `pairs` | preference pairs, with a reference's log-probabilities if the objective needs them | the same |
| `labelled` | answers that are good or bad, with the same | the same |
| `prompts` | prompts; batches come from answers that are sampled and scored | the reward of the likeliest answers |
| `taught` | tokens with a teacher's likeliest ids | the objective's means |
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.artifact import Artifact
from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.stages.distillation_rows import distillation_rows, taught_rows
from lifecycle.stages.learner import Learner, LearningRows, encoded_rows, heldout_measurement, kept, list_dropped
from lifecycle.stages.preference_rows import labelled_rows, pair_rows
from lifecycle.stages.prompt_rows import prompt_rows
from lifecycle.stages.stage import Inputs
from lifecycle.text.interface import Tokenizer
from lifecycle.training.config import TrainConfig
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.job import Continued
from lifecycle.training.likelihood import NextTokenConfig, SftConfig
from lifecycle.training.mixture import Mixture
from lifecycle.training.mixture_setting import mixed_shares, named_in, parts_of, repeated, source_weights
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.packing import ExampleRows, RowSource
from lifecycle.training.preference import ProcessRewardModelConfig
from lifecycle.training.scoring import PackedPieces, document_pieces, logprobs, nats_of, row_length
from lifecycle.training.step_rows import StepRows
from lifecycle.training.token_rows import TokenRows
from lifecycle.training.wrapped_rows import WrappedRows

BITS = "heldout_bits_per_byte"  # of all measured text; with `.SOURCE` behind it, of one source's


def read_learning_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """The rows of the learner's objective; `out` gets the list of dropped rows, and reference tables."""
    kind = objective_kind(learner.train.objective)
    read = OF_OBJECTIVES.get(kind.name, READERS[kind.rows])
    return read(learner, inputs, out, progress)


def token_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Rows cut from the token shards."""
    train = learner.train
    assert isinstance(train, NextTokenConfig)
    shards = training_shards(inputs["tokens"], learner.tokenizer)
    heldout = TokenShards(inputs["tokens"].path, "heldout", learner.tokenizer)
    first_step = learner.start.step if isinstance(learner.start, Continued) else 0
    weights, mixed = mixture_of(train, train.steps - first_step, shards, progress)
    rows = TokenRows(shards, train.seq_len, weights, learner.seeds["tokens"])
    evaluation = heldout_bits(learner.model, train, heldout, learner.tokenizer.byte_lengths, learner.mesh)
    hooks = () if evaluation is None else (evaluation,)
    return LearningRows(rows, rows.num_rows, hooks, {"corpus_tokens": shards.num_tokens} | mixed)


def mixture_of(
    train: NextTokenConfig, own_steps: int, shards: TokenShards, progress: Progress
) -> tuple[dict[str, float], dict[str, Any]]:
    """(the weight of each source, what the manifest says of it); both empty without a mixture. Warns of sources that
    the stage's `own_steps` read too often: without those of a run that it goes on with."""
    if not train.mixture:
        return {}, {}
    tokens = shards.source_tokens()
    weights = source_weights(train.mixture, tokens)
    shares = mixed_shares(weights, tokens, own_steps * train.global_batch_size * train.seq_len)
    if (warning := repeated(shares)) is not None:
        progress.note(f"mixture: {warning}")
    return weights, {"mixture": shares}


def training_shards(tokens: Artifact, tokenizer: Tokenizer) -> TokenShards:
    """The token shards to train on."""
    return TokenShards(tokens.path, "train", tokenizer)


def require_sources(stages: Iterable[TrainConfig], shards: TokenShards) -> None:
    """Raises `ShardError` if any stage's mixture names a source without documents; called before training."""
    named = {name for train in stages if isinstance(train, NextTokenConfig) for name in named_in(train.mixture)}
    for name in named:
        if not parts_of(name, shards.sources):
            shards.of_source(name)


def chat_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Conversations packed into rows, mixed with replayed token rows according to the settings."""
    train, packed, reports = learner.train, {}, {}
    pack = WrappedRows if train.wraps else ExampleRows
    for split in ("train", "heldout"):
        examples, reports[split] = encoded_rows(learner, inputs, "chat", split, progress)
        packed[split] = pack(examples, train.seq_len, learner.seeds["chat"], reports[split].name)
    list_dropped(out, reports)
    rows: RowSource = packed["train"]
    epoch_rows = train.epoch_rows(len(reports["train"].names), rows.num_rows)
    if isinstance(train, SftConfig) and train.replay_share:
        shards = training_shards(inputs["tokens"], learner.tokenizer)
        replay = DocumentRows(shards, train.seq_len, learner.seeds["tokens"])
        rows = Mixture({"chat": rows, "replay": replay}, {"chat": 1 - train.replay_share, "replay": train.replay_share})
    return LearningRows(rows, epoch_rows, (heldout_measurement(learner, packed["heldout"]),), kept("examples", reports))


def step_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Answers in steps, packed into rows."""
    train, packed, reports = learner.train, {}, {}
    assert isinstance(train, ProcessRewardModelConfig)
    for split in ("train", "heldout"):
        encoded, reports[split] = encoded_rows(learner, inputs, "steps", split, progress)
        answers, name = [answer.segments[0] for answer in encoded], reports[split].name
        is_last = train.last_step_only and split == "train"
        packed[split] = StepRows(answers, train.seq_len, learner.seeds["steps"], name, is_last)
    list_dropped(out, reports)
    hooks = (heldout_measurement(learner, packed["heldout"]),)
    return LearningRows(packed["train"], packed["train"].num_rows, hooks, kept("steps", reports))


READERS: dict[str, Callable[[Learner, Inputs, Path, Progress], LearningRows]] = {
    "tokens": token_rows,
    "chat": chat_rows,
    "steps": step_rows,
    "pairs": pair_rows,
    "labelled": labelled_rows,
    "prompts": prompt_rows,
    "taught": taught_rows,
}


# Those whose rows have more than their kind's.
OF_OBJECTIVES: dict[str, Callable[[Learner, Inputs, Path, Progress], LearningRows]] = {
    "distillation": distillation_rows
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
