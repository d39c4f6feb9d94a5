"""`lifecycle data perplexity`: how probable a model of this project finds each tagged document."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.outputs import takes_file
from lifecycle.cli.respondents import MostBytes, OwnModelName, measuring_model
from lifecycle.cli.terminal import terminal
from lifecycle.stages.chain import finished_stage

type Out = Annotated[
    Path, Parameter(help="The file for the scores, a row for each document: perplexity.jsonl.", validator=takes_file)
]


def perplexity(
    config: ConfigPath, /, *overrides: Overrides, model: OwnModelName, out: Out, most_bytes: MostBytes = 20_000
) -> None:
    """Measures the perplexity and the bits per byte of every tagged document; `data.scores` names the file.

    What is measured is never measured again: a killed command goes on, and so does one with more documents.
    """
    run = read_config(config, overrides)
    tagging = finished_stage(run, "tagging").path
    scoring, version = measuring_model(config, overrides, model)
    from lifecycle.annotation.perplexity import measure_perplexity

    with progress_on(terminal(stderr=True)) as progress:
        found = measure_perplexity(tagging, out, scoring, version, most_bytes, progress)
    print(f"{out}: {found.documents:,} documents, {found.before:,} of them measured before")
