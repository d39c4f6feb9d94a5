"""`lifecycle evaluate BUNDLE TASKS`: scores any bundle, one that was imported or that another tool made, on tasks of a
file, without a run.

The tasks file is a run file's `evaluate` section on its own. The results are an artifact, keyed by the bundle's
content, the tasks and their rows: the same question is answered once. What must hold: a bundle gets the scores that
the same weights get inside a run with the same context.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from lifecycle.cli.display import progress_on
from lifecycle.cli.make import start_jax
from lifecycle.core.artifact import Artifact, ArtifactError, Draft, content_hash, open_artifact
from lifecycle.core.config import load_config
from lifecycle.core.progress import Progress
from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.results import EvalResult, read_results
from lifecycle.evals.scoring import evaluate
from lifecycle.evals.tasks import EvalConfig, local_rows
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.model import Model
from lifecycle.parallel.mesh import MeshConfig, build_mesh
from lifecycle.stages.evaluate import Evaluated
from lifecycle.text.chat import ChatTemplate, read_template
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights import published as weights

STAGE = "evaluation"
NO_TURNS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # of a base model; only the EOS ends it


class TasksConfig(EvalConfig):
    """A tasks file: what to ask, with how much context, and where the results go."""

    root: Path = Path("runs/evaluations")
    max_seq_len: int = Field(default=2048, gt=1)  # the context, at most the model's; the cache of generations has it


def evaluate_bundle(bundle: Path, tasks: Path, overrides: tuple[str, ...]) -> None:
    """Evaluates a bundle and prints the scores, or those that it already has."""
    config = load_config(TasksConfig, tasks, overrides)
    start_jax(config.root)
    console = Console(emoji=False)
    with progress_on(console) as progress:
        artifact = scores(config, bundle, progress)
    console.print(_table(read_results(artifact.path)))
    console.print(f"results {artifact.path}", markup=False, highlight=False, soft_wrap=True)


def scores(config: TasksConfig, bundle: Path, progress: Progress) -> Artifact:
    """The results' artifact: the finished one if there is, else a new one.

    Raises `ConfigError` for tasks that cannot be run, and what `load_bundle` raises for a folder that is no bundle.
    """
    rows = local_rows(config)
    settings: dict[str, Any] = config.plain() | {"bundle": content_hash(bundle), "rows": rows}
    del settings["root"]
    draft = Draft(config.root, STAGE, settings, {})
    try:
        return open_artifact(draft.final_path)
    except ArtifactError:  # not made yet, or damaged
        pass
    model, encoder = _open(bundle, config.max_seq_len)
    out = draft.open()
    evaluated = Evaluated(model, build_mesh(MeshConfig()))
    return draft.commit({"tasks": evaluate(config, {}, encoder, evaluated, evaluated, out, progress)})


def _open(bundle: Path, max_seq_len: int) -> tuple[Model, TextEncoder]:
    """The model with its context cut to `max_seq_len`, and what encodes for it; a base model has no turns to encode."""
    if read_template(bundle) is not None:
        model = load_bundle(bundle)
        encoder = TextEncoder(model.tokenizer, model.template)
    else:
        config, tokenizer = weights.load_config(bundle), load_tokenizer(bundle)
        config.with_vocab(tokenizer.vocab_size)
        model = Model(config, weights.load_weights(config, bundle), tokenizer, ChatTemplate(tokenizer, NO_TURNS))
        encoder = TextEncoder(tokenizer)
    context = min(max_seq_len, model.config.max_seq_len)
    return replace(model, config=model.config.model_copy(update={"max_seq_len": context})), encoder


def _table(results: list[EvalResult]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("task", "metric", "score", "95 % interval", "rows", "also"):
        table.add_column(column, no_wrap=column != "also")
    for result in results:
        also = "  ".join(f"{name} {value:.4g}" for name, value in result.other.items() if name != result.metric)
        skipped = f"  {len(result.skipped)} rows too long" if result.skipped else ""
        interval = f"[{result.low:.4f}, {result.high:.4f}]"
        table.add_row(result.task, result.metric, f"{result.mean:.4f}", interval, str(result.n), also + skipped)
    return table
