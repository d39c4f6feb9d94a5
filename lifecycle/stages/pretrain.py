"""Stage `pretrain`: next-token prediction on the token shards, held-out bits per byte measured on the way."""

import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.model.config import ModelConfig, forward_flops_per_token, num_params
from lifecycle.model.decoder import Params
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import imported_params, run_training
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.config import NextTokenConfig
from lifecycle.training.loop import Evaluation, Job
from lifecycle.training.objectives.language import language_objective
from lifecycle.training.packing import DocumentRows
from lifecycle.training.scoring import document_nats


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    train, model, mesh = config.pretrain, config.model, build_mesh(config.mesh)
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    shards = TokenShards(inputs["tokens"].path, "train", tokenizer)
    heldout = TokenShards(inputs["tokens"].path, "heldout", tokenizer)
    job = Job(
        model=model,
        train=train,
        mesh=mesh,
        objective=language_objective(model, train),
        rows=DocumentRows(shards, train.seq_len, config.seed),
        start=imported_params(Path(train.start), model, tokenizer, mesh)
        if train.start
        else jax.random.key(config.seed),
        out=out,
        evaluation=heldout_bits(model, train, heldout, tokenizer.byte_lengths, mesh),
    )
    facts = {
        "parameters": num_params(model),
        "train_flops_per_token": 3 * forward_flops_per_token(model, train.seq_len),
        "corpus_tokens": shards.num_tokens,
    }
    return run_training(job, progress, facts)


def heldout_bits(
    model: ModelConfig, train: NextTokenConfig, heldout: TokenShards, byte_lengths: np.ndarray, mesh: Mesh
) -> Evaluation | None:
    """Bits per byte on the first held-out documents, up to about `train.eval_bytes`, each cut to a quarter of that so
    that no single document decides, in windows of `train.seq_len`; None where nothing is held out."""
    pieces, total = [], 0
    for number in range(len(heldout)):
        ids = heldout[number]
        ends = np.searchsorted(np.cumsum(byte_lengths[ids]), train.eval_bytes // 4, side="right")
        pieces.append(ids[: max(2, ends)])
        total += int(byte_lengths[pieces[-1]].sum())
        if total >= train.eval_bytes:
            break
    if not pieces:
        return None

    def measure(params: Params) -> dict[str, float]:
        nats = document_nats(model, params, pieces, train.seq_len, mesh)
        return {"heldout_bits_per_byte": sum(nats) / math.log(2) / total}

    return Evaluation(train.eval_every, measure)
