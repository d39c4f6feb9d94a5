"""Stage `evaluate`: runs the tasks on the weights of one training stage."""

from pathlib import Path

import jax

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.evaluation import evaluate
from lifecycle.evals.model import chat_model
from lifecycle.inference.model import Model
from lifecycle.model.config import num_params
from lifecycle.model.decoder import compute_dtype
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.stages.weights import trained_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer


def require_room(config: RunConfig) -> None:
    """Raises `ConfigError` where a task generates and the model cannot be whole on one device beside its part of it.

    A device that does not tell its memory (a CPU) is not asked; one that trained the whole model has room.
    """
    tasks = [task.name for task in config.tasks if task.kind == "generate"]
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not tasks or limit is None or config.mesh.size == 1:
        return
    model = max(map(config.model_of, config.evaluated), key=num_params)
    dtype, size = compute_dtype(model), num_params(model)
    held = 4 * size * config.mesh.replica // config.mesh.size  # float32, cut over every other axis
    whole = size * (2 if dtype == "bfloat16" else 4)
    if held + whole > limit:
        raise ConfigError(
            f"evaluate.tasks: {', '.join(tasks)} generate on one device, which has {limit / 1e9:.1f} GB; the model "
            f"takes {whole / 1e9:.1f} GB there in {dtype}, beside {held / 1e9:.1f} GB of the weights as trained. Leave "
            "these tasks out (bits_per_byte and multiple_choice are scored on the whole mesh), or ask them of the "
            "exported bundle with `lifecycle evaluate` on a device that holds it"
        )


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, trained: str) -> Outcome:
    """Scores the final weights of the training stage `trained`."""
    require_room(config)
    assert config.evaluate is not None, "the graph evaluates where there is an evaluate section"
    mesh, folder, model = build_mesh(config.mesh), inputs["tokenizer"].path, config.model_of(trained)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.load(folder, tokenizer)
    params = trained_params(inputs[trained], model, mesh)
    subject = chat_model(Model(model, params, tokenizer, template), mesh)
    folders = {name: artifact.path for name, artifact in inputs.items()}
    return Outcome({"tasks": evaluate(config.evaluate, folders, subject, out, progress)})
