"""Stages of kind `train`: train an objective on its rows, from the stage's initial weights."""

from pathlib import Path

from lifecycle.core.machine import matmul_peak
from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.model.config import forward_flops_per_token, num_params
from lifecycle.model.params import compute_dtype
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.learning_rows import Learner, read_learning_rows, require_sources
from lifecycle.stages.sessions import RecordSession, finished_sessions
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.stages.weights import start_weights
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.batches import RowBatches
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, name: str) -> Outcome:
    """Trains the stage `name`; the artifact's content hash is that of the weights, not of the checkpoint files."""
    train, model, mesh = config.train[name], config.model_of(name), build_mesh(config.mesh)
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    if "tokens" in inputs:
        require_sources(config.train.values(), TokenShards(inputs["tokens"].path))
    start, start_hash = start_weights(config, name, inputs, tokenizer, mesh)
    seeds = {kind: config.seed + order for kind, order in keys.row_order(config, name).items()}
    objective = build_objective(model, train)
    learner = Learner(train, model, mesh, objective, tokenizer, start, start_hash, seeds)
    learned = read_learning_rows(learner, inputs, out, progress)
    batches = RowBatches.on_mesh(learned.rows, train.global_batch_size, mesh)
    job = TrainJob(model, train, mesh, objective, batches, start, out)
    stats = run_job(job, progress, (RecordSession(config.mesh, train), *learned.hooks))
    facts = {
        "parameters": num_params(model),
        "train_flops_per_token": 3 * forward_flops_per_token(model, train.seq_len),
        "compute_dtype": compute_dtype(model),
        "matmul_peak_flops": matmul_peak(compute_dtype(model)),
    }
    sessions = finished_sessions(out, train.steps)
    return Outcome(stats | learned.facts | facts, content_hash=stats["params_hash"], how=sessions)
