"""What the three training stages share: run the job, read weights of the stage before, say what came out."""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lifecycle.core.artifact import Artifact, write_text
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import is_writer
from lifecycle.core.machine import matmul_peak
from lifecycle.core.progress import Progress
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, abstract_params, compute_dtype, logical_axes
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.stages.chain import STAGES, Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.text.interface import Tokenizer
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.checkpoint import load_params
from lifecycle.training.config import TrainConfig
from lifecycle.training.loop import CHECKPOINTS, Job, run_job
from lifecycle.weights.families.family import differences
from lifecycle.weights.published import load_config, load_weights

DROPPED_ROWS = "dropped_rows.json"


def run_training(job: Job, progress: Progress, facts: dict[str, Any]) -> Outcome:
    """Runs the job; the artifact's content hash is its weights', whatever the checkpoint files look like."""
    stats = run_job(job, progress)
    dtype = compute_dtype(job.model)
    peak = {"matmul_peak_flops": matmul_peak(dtype), "compute_dtype": dtype}
    return Outcome(stats | facts | peak, content_hash=stats["params_hash"])


def trained_params(artifact: Artifact, model: ModelConfig, mesh: Mesh | None = None) -> Params:
    """The final weights of a training stage's artifact: laid over `mesh`, or whole on this process's first device.

    The last step's, never those of an earlier checkpoint that is still whole where the last is damaged.
    """
    shardings = tree_shardings(mesh, logical_axes(model)) if mesh is not None else None
    return load_params(artifact.path / CHECKPOINTS, abstract_params(model), artifact.stats["steps"], shardings)


def start_params(config: RunConfig, name: str, inputs: Inputs, mesh: Mesh) -> Params:
    """The weights that a stage goes on from: of the bundle that its config names, else of the stage before."""
    train: TrainConfig = getattr(config, name)
    if train.start is not None:
        return imported_params(Path(train.start), config.model, load_tokenizer(inputs["tokenizer"].path), mesh)
    before = STAGES[name].start
    assert before is not None, f"{name} goes on from no stage"
    return trained_params(inputs[before], config.model, mesh)


def imported_params(bundle: Path, model: ModelConfig, tokenizer: Tokenizer, mesh: Mesh) -> Params:
    """A bundle's weights, laid over `mesh`; raises `ConfigError` for another model or vocabulary than this run's."""
    held = load_config(bundle)
    if wrong := differences(held.model_copy(update={"max_seq_len": model.max_seq_len}), model):
        raise ConfigError(f"{bundle} holds another model, of {', '.join(wrong)}; set those in this run's model section")
    if load_tokenizer(bundle).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{bundle} was trained with another vocabulary than this run's; take its own: tokenizer.kind=hf (or "
            f"sentencepiece) and tokenizer.path={bundle}"
        )
    return load_weights(model, bundle, tree_shardings(mesh, logical_axes(model)))


def list_dropped(out: Path, reports: list[dict[str, Any]]) -> None:
    """Keeps which rows were dropped, and why, beside the weights that did not see them."""
    if is_writer():
        write_text(out / DROPPED_ROWS, json.dumps(reports, indent=1))
