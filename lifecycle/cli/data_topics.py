"""`lifecycle data topics`: what documents are about, by clusters of what a model of this project makes of them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import in_line, print_json, progress_on
from lifecycle.cli.documents import CorpusName, chosen_corpus, documents_of
from lifecycle.cli.outputs import takes_file
from lifecycle.cli.respondents import MostBytes, OwnModelName, measuring_model
from lifecycle.cli.terminal import terminal
from lifecycle.report.format import share
from lifecycle.training.config import PERIOD

if TYPE_CHECKING:
    from lifecycle.annotation.topics import Found, Topic

SOURCES = 3  # that are shown of a topic

type Clusters = Annotated[int, Parameter(help="How many topics.", validator=Number(gte=2, lte=PERIOD))]
type Out = Annotated[
    Path, Parameter(help="The file for the topics, a row for each document: topics.parquet.", validator=takes_file)
]


def topics(
    config: ConfigPath, /, *overrides: Overrides, model: OwnModelName, out: Out, clusters: Clusters = 16,
    most_bytes: MostBytes = 4_000, corpus: CorpusName = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Sorts the kept and held-out documents into topics, and shows what each is about. `data.topics` names the file;
    then a mixture has sources SOURCE/topic-00 and so on.

    What is embedded is never embedded again: a killed command goes on, and so does one with another number of topics.
    """
    run = read_config(config, overrides)
    documents = documents_of(run, chosen_corpus(run, corpus)).path
    embedding, version = measuring_model(config, overrides, model)
    from lifecycle.annotation.topics import TopicSettings, find_topics

    settings = TopicSettings(clusters, most_bytes, run.seed)
    with progress_on(terminal(stderr=True)) as progress:
        found = find_topics(documents, out, embedding, version, settings, progress)
    if as_json:
        print_json(asdict(found))
    else:
        _show(out, found)


def _show(out: Path, found: "Found") -> None:
    table = Table(box=None, header_style="bold")
    for column in ("topic", "documents", "MB", "cosine"):
        table.add_column(column, justify="right")
    table.add_column("sources")
    table.add_column("words")
    for topic in found.topics:
        size = f"{topic.bytes / 1e6:,.2f}"
        words = escape(in_line(" ".join(topic.words)))
        table.add_row(
            f"{topic.topic:02d}", f"{topic.documents:,}", size, f"{topic.similarity:.2f}", _made_of(topic), words
        )
    console = terminal()
    console.print(table)
    number = sum(topic.documents for topic in found.topics)
    without = f", {found.empty:,} without a text and so without a topic" if found.empty else ""
    print(f"{out}: {number:,} documents{without}; {found.before:,} embedded before")


def _made_of(topic: "Topic") -> str:
    """The sources that most of a topic's documents are of, with their shares."""
    shown = [f"{name} {share(number / topic.documents)}" for name, number in [*topic.sources.items()][:SOURCES]]
    return escape(in_line(", ".join(shown)))
