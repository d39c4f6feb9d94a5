"""`lifecycle data synthesise`: a language model writes texts from kept documents, as a source for another run."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides
from lifecycle.cli.display import print_json, progress_on
from lifecycle.cli.documents import CorpusName, documents_folder
from lifecycle.cli.outputs import takes_folder
from lifecycle.cli.respondents import DEFAULTS, Asking, ModelName, recorded, respondent, shown_model
from lifecycle.cli.terminal import terminal

type WhichKind = Annotated[
    Literal["rephrase", "questions"], Parameter(help="The text written again, or questions with answers.")
]
type Most = Annotated[int, Parameter(help="Documents, of each source its share.", validator=Number(gte=1))]
type Out = Annotated[Path, Parameter(help="The folder for artifacts with such rows.", validator=takes_folder)]
type PromptFile = Annotated[
    Path | None, Parameter(name="prompt", help="A prompt of your own: jinja2 over text, source, url, license.")
]
type Chars = Annotated[int, Parameter(help="Of a passage, at most.", validator=Number(gte=200))]


def synthesise(
    config: ConfigPath, /, *overrides: Overrides, kind: WhichKind, model: ModelName, out: Out, most: Most = 1000,
    prompt: PromptFile = None, chars: Chars = 4000, asking: Asking = DEFAULTS, corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Has a model rephrase kept documents, or ask and answer questions about them; prints the file with the rows.

    The same command finds what it has made; a killed one goes on. Read the file as a source of another run, after the
    documents that it came from: rows have no other deduplication and decontamination.
    """
    from lifecycle.annotation.prompts import QUESTIONS, REPHRASE, read_prompt
    from lifecycle.annotation.synthesis import ROWS, Synthesis
    from lifecycle.annotation.synthesis import synthesise as make

    folder = documents_folder(str(config), overrides, corpus)
    shipped = REPHRASE if kind == "rephrase" else QUESTIONS
    wanted = Synthesis(kind, shipped if prompt is None else read_prompt(prompt), most, asking.seed, chars)
    sampled, how = asking.sampled(temperature=0.7, max_tokens=2048), {"asked": shown_model(model)}
    console = terminal(stderr=True)
    with respondent(config, overrides, model, asking, sampled) as answering, progress_on(console) as progress:
        made = make(folder, out, answering, wanted, progress, recorded(sampled), how)
    rows, stats = made.path / ROWS, made.stats
    if as_json:
        print_json({"rows": str(rows), **stats})
        return
    failed = ", ".join(f"{fault} {count:,}" for fault, count in stats["faults"].items()) or "none"
    print(f"{stats['documents']:,} documents, {stats['passages']:,} passages, {stats['rows']:,} rows; failed: {failed}")
    print(rows)
