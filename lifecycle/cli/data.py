"""`lifecycle data`: the data of the training stages, what it looks like, and what became of a document."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.data_fertility import fertility
from lifecycle.cli.data_fetch import fetch
from lifecycle.cli.data_mix import mix
from lifecycle.cli.data_perplexity import perplexity
from lifecycle.cli.data_plan import plan
from lifecycle.cli.data_score import score
from lifecycle.cli.data_signatures import signatures
from lifecycle.cli.data_synthesise import synthesise
from lifecycle.cli.data_topics import topics
from lifecycle.cli.display import in_line, print_json, progress_on
from lifecycle.cli.documents import CorpusName, chosen_corpus, data_run, documents_folder, documents_of
from lifecycle.cli.make import make
from lifecycle.cli.outputs import takes_file
from lifecycle.cli.pager import show_pages
from lifecycle.cli.terminal import terminal
from lifecycle.cli.train_classifier import train_classifier
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import errors_are_shared
from lifecycle.core.files import write_text
from lifecycle.stages.chain import finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, present
from lifecycle.stages.names import TAGGING, of_corpus

data = App(name="data", help="Prepare documents, token shards and rows; show them, and what became of each document.")
data.command(fetch)
data.command(plan)
data.command(mix)
data.command(fertility)
data.command(train_classifier)
for verb in (score, synthesise, perplexity, topics, signatures):
    data.command(verb)

type Out = Annotated[
    Path | None,
    Parameter(
        help="A file for the page; NAME-data.html by default, of a named corpus NAME-CORPUS-data.html.",
        validator=takes_file,
    ),
]
type Documents = Annotated[
    str, Parameter(help="The run's YAML file, or a folder or address with an artifact of stage `documents`.")
]
type WhichSplit = Annotated[Literal["kept", "heldout", "removed"] | None, Parameter(help="Only these documents.")]
type Reason = Annotated[str | None, Parameter(help="Only those removed by this step, or for this reason of a step.")]
type Source = Annotated[str | None, Parameter(help="Only those of this source.")]
type Columns = Annotated[str, Parameter(help="What is shown below each heading: columns, separated by commas.")]
type Chars = Annotated[int, Parameter(help="Of a text, for people; 0: all.", validator=Number(gte=0))]
type NumSamples = Annotated[int, Parameter(help="Of each of the largest moves.", validator=Number(gte=1))]
type DocumentName = Annotated[
    str,
    Parameter(
        help="The document's id or its beginning, the hash of its content, its address, its path, or source:path, as "
        "reasons name it."
    ),
]


@data.default
@errors_are_shared()
def make_data(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the run's documents, token shards and rows up to date; rows only if there is something to make them of."""
    run = read_config(config, overrides)
    rows = ["rows"] if run.has_rows else []
    make(run, present(build_graph(run), *run.documents_stages, "tokens", *rows), [str(config), *overrides])


@data.command
def report(config: ConfigPath, /, *overrides: Overrides, corpus: CorpusName = None, out: Out = None) -> None:
    """Writes a page on a corpus's documents: what was read, kept and removed and why, scores, samples, cost."""
    run = read_config(config, overrides)
    chosen = chosen_corpus(run, corpus)
    with progress_on(terminal(stderr=True)) as progress:
        numbers = data_run(run, chosen, progress)
    from lifecycle.report.data_page import build_data_page
    from lifecycle.report.html import render_html  # matplotlib takes a second

    path = out or Path(f"{of_corpus(run.name, chosen)}-data.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_html(build_data_page(numbers)))
    print(path)


@data.command
def why(
    config: ConfigPath, document: DocumentName, /, *overrides: Overrides, corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Prints what each step measured of a document, what it changed, and why the document was removed or kept."""
    run = read_config(config, overrides)
    found = _fates(run, chosen_corpus(run, corpus), document)
    if as_json:
        print_json(found)
        return
    console = terminal()
    for fate in found:
        _show(console, fate)


@data.command
def peek(
    documents: Documents, /, *overrides: Overrides, split: WhichSplit = None, reason: Reason = None,
    source: Source = None, columns: Columns = "text", chars: Chars = 1000, corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Pages through documents, those kept, held out and removed, in the user's pager; prints them all into a pipe."""
    from lifecycle.cli.data_rows import NAMED, Choice, as_line, as_text, checked_columns, chosen_rows

    folder = documents_folder(documents, overrides, corpus)
    shown = checked_columns(folder, [name.strip() for name in columns.split(",")])
    rows = chosen_rows(folder, Choice(split, source, reason), tuple(dict.fromkeys((*NAMED, *shown))))
    show_pages(map(as_line if as_json else as_text(shown, chars), rows))


@data.command
def diff(
    a: Documents, b: Documents, /, *overrides: Overrides, samples: NumSamples = 5, corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compares two selections: what entered and left the kept documents, what moved and why, and samples. Settings
    change the second one: `diff run.yaml run.yaml data.quality.gopher.min_words=20`, once that one is selected."""
    from lifecycle.cli.data_moves import as_tree, show
    from lifecycle.data.inspecting.comparison import compare

    before, after = documents_folder(a, (), corpus), documents_folder(b, overrides, corpus)
    with progress_on(terminal(stderr=True)) as progress:
        compared = compare(before, after, samples, progress)
    if as_json:
        print_json(as_tree(compared, {"a": before, "b": after}))
    else:
        show(terminal(), compared, {"a": before, "b": after})


def _fates(run: RunConfig, corpus: str, name: str) -> list[dict[str, Any]]:
    from lifecycle.data.inspecting.fate import find_documents, passages, unread, with_holders
    from lifecycle.data.inspecting.selected import require_columns
    from lifecycle.data.measures.filters import document_steps
    from lifecycle.data.tagging.tagging import read_reading

    folder, steps = documents_of(run, corpus).path, document_steps(run.corpora[corpus])
    require_columns(folder, (name for step in steps for name in (*step.edits, *step.left)))
    found = [
        {
            **{column: fate.row[column] for column in ("id", "source", "path", "license", "format", "language")},
            "meta": json.loads(fate.row["meta"]),
            "result": fate.split,
            "removed_by": fate.row["step"],
            "steps": [
                {"step": passed.step, "measured": passed.measured, "reasons": passed.reasons}
                for passed in passages(fate, steps)
            ],
            "cuts": fate.row["cuts"],
            "text": fate.row["text"],
        }
        for fate in with_holders(folder, find_documents(folder, name), run.corpora[corpus].dedup)
    ]
    for entry in unread(read_reading(finished_stage(run, of_corpus(TAGGING, corpus)).path).skipped, name):
        why_not = {"reason": entry.reason, "detail": entry.detail}
        found.append({"source": entry.source, "path": entry.path, "result": "not read", **why_not})
    if not found:
        raise ConfigError(
            f"no document is named {name!r} in {folder}: give an id or its first six digits or more, the hash of a "
            "content, an address, a path below its source, or source:path; rows of files are PATH:NUMBER"
        )
    return found


def _show(console: Console, fate: dict[str, Any]) -> None:
    named = in_line(f"{fate['source']}:{fate['path']}")
    if fate["result"] == "not read":
        console.print(f"{named}: not read: {fate['reason']}: {in_line(fate['detail'])}", markup=False)
        return
    outcome = f"removed by {fate['removed_by']}" if fate["removed_by"] else fate["result"]
    kind = in_line(f"{fate['license']}  {fate['language']}")
    console.print(f"{outcome}: {fate['id']}  {named}  {kind}", markup=False, soft_wrap=True)
    table = Table(box=None, header_style="bold")
    for column in ("step", "measured and changed", "removed because"):
        table.add_column(column, overflow="fold")
    for passed in fate["steps"]:
        texts = ("\n".join(map(in_line, passed[part])) for part in ("measured", "reasons"))
        table.add_row(passed["step"], *map(escape, texts))
    console.print(table)
