"""`lifecycle data perplexity`: how probable a model of this project finds each tagged document."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.display import progress_on
from lifecycle.stages.chain import finished_stage

if TYPE_CHECKING:
    from lifecycle.inference.model import Model

CONTEXT = 2048  # tokens; a longer text is scored in windows

type ModelName = Annotated[
    str, Parameter(name="model", help="A bundle's folder, or a training stage or a version of the run.")
]
type Out = Annotated[Path, Parameter(help="The file for the scores, a row for each document: perplexity.jsonl.")]
type MostBytes = Annotated[int, Parameter(help="Of a text, from its beginning.", validator=Number(gte=1))]


def perplexity(
    config: ConfigPath, /, *overrides: Overrides, model: ModelName, out: Out, most_bytes: MostBytes = 20_000
) -> None:
    """Measures the perplexity and the bits per byte of every tagged document; `data.scores` names the file.

    What is measured is never measured again: a killed command goes on, and so does one with more documents.
    """
    run = read_config(config, overrides)
    tagging = finished_stage(run, "tagging").path
    scoring, version = _opened(config, overrides, model)
    from lifecycle.annotation.perplexity import measure_perplexity

    with progress_on(Console(emoji=False, stderr=True)) as progress:
        found = measure_perplexity(tagging, out, scoring, version, most_bytes, progress)
    print(f"{out}: {found.documents:,} documents, {found.before:,} of them measured before")


def _opened(config: Path, overrides: tuple[str, ...], name: str) -> tuple["Model", str]:
    """The model, and what names its weights. A bundle need not have a chat template."""
    from lifecycle.cli.make import BUNDLES, start_jax
    from lifecycle.cli.respondents import own_model
    from lifecycle.core.artifact import intact_hash
    from lifecycle.core.files import user_cache

    if not Path(name).is_dir():
        model = own_model(config, overrides, name)
        return model, model.version
    start_jax(user_cache() / BUNDLES)
    from lifecycle.evals.model import open_bundle
    from lifecycle.parallel.axes import MeshConfig
    from lifecycle.parallel.mesh import build_mesh

    return open_bundle(Path(name), CONTEXT, build_mesh(MeshConfig())).model, intact_hash(Path(name))
