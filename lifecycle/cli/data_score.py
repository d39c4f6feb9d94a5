"""`lifecycle data score`: a language model grades a sample of the kept documents."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides
from lifecycle.cli.display import print_json, progress_on
from lifecycle.cli.documents import CorpusName, documents_folder
from lifecycle.cli.outputs import takes_file
from lifecycle.cli.respondents import DEFAULTS, Asking, ModelName, recorded, respondent
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError

type Out = Annotated[
    Path, Parameter(help="The file for the grades, a row for each graded document: scores.jsonl.", validator=takes_file)
]
type Sample = Annotated[
    int, Parameter(help="Documents that are graded, of each source its share.", validator=Number(gte=1))
]
type PromptFile = Annotated[
    Path | None,
    Parameter(name="prompt", help="A prompt of your own: jinja2 over text, source, url, license, low, high."),
]
type Low = Annotated[float, Parameter(help="The lowest grade.")]
type High = Annotated[float, Parameter(help="The highest grade.")]
type Chars = Annotated[int, Parameter(help="Of a document, from its beginning.", validator=Number(gte=1))]


def score(
    config: ConfigPath, /, *overrides: Overrides, model: ModelName, out: Out, sample: Sample = 2000,
    prompt: PromptFile = None, low: Low = 0, high: High = 5, chars: Chars = 8000, asking: Asking = DEFAULTS,
    corpus: CorpusName = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Has a model grade a sample of the kept documents; `train-classifier --scores` learns from them.

    What has an answer is never asked again: a killed command goes on, a larger sample asks for the rest.
    """
    from lifecycle.annotation.grading import Grading, grade_documents
    from lifecycle.annotation.prompts import EDUCATION, SCALE, read_prompt

    if low >= high:
        raise ConfigError(f"--low={low:g} must be below --high={high:g}")
    folder = documents_folder(str(config), overrides, corpus)
    asked = Grading(EDUCATION if prompt is None else read_prompt(prompt, SCALE), sample, asking.seed, low, high, chars)
    sampled = asking.sampled(temperature=0, max_tokens=300)
    console = terminal(stderr=True)
    with respondent(config, overrides, model, asking, sampled) as answering, progress_on(console) as progress:
        found = grade_documents(folder, out, answering, asked, progress, recorded(sampled))
    if as_json:
        print_json(
            {"out": str(out), "grades": list(found.grades.items()), "faults": found.faults, "before": found.before}
        )
        return
    graded, failed = sum(found.grades.values()), sum(found.faults.values())
    print(f"{out}: {graded:,} documents graded, {failed:,} answers without a grade, {found.before:,} answered before")
    for grade, count in found.grades.items():
        print(f"  {grade:g}: {count:,}")
    for fault, count in found.faults.items():
        print(f"  {fault}: {count:,}")
