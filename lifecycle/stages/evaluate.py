"""Stage `evaluate`: runs the tasks on the weights of one training stage."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.evals.evaluation import evaluate
from lifecycle.evals.model import chat_model
from lifecycle.inference.model import Model
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.config import RunConfig
from lifecycle.stages.sessions import session_on
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.stages.weights import trained_params_in_use
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, trained: str) -> Outcome:
    """Scores the final weights of the training stage `trained`."""
    assert config.evaluate is not None, "the graph evaluates where there is an evaluate section"
    mesh, folder, model = build_mesh(config.evaluation_mesh), inputs["tokenizer"].path, config.trained_model(trained)
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.load(folder, tokenizer)
    params = trained_params_in_use(inputs[trained], model, mesh, config.train[trained].weights)
    subject = chat_model(Model(model.target, params, tokenizer, template), mesh)
    folders = {name: artifact.path for name, artifact in inputs.items()}
    results = evaluate(config.evaluate, folders, subject, out, progress)
    return Outcome({"tasks": results}, how=[session_on(config.evaluation_mesh)])
