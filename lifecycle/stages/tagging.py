"""Stage `tagging`: reads the sources into documents with a column for every measurement."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.reading.sources import fetch_sources
from lifecycle.data.selecting.preference import criteria_of
from lifecycle.data.tagging.tagging import tag_documents
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import of_corpus
from lifecycle.stages.stage import Inputs, Outcome

PARTITIONS = "partitions"  # the folder beside the artifacts with what tagging has made, for its next run


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, corpus: str) -> Outcome:
    """Reads a corpus's sources and measures every document."""
    del inputs  # the first stage has none
    data = config.corpora[corpus]
    criteria_of(data)  # a mistake in them is told before the sources are read
    fetch_sources(data)
    return Outcome(tag_documents(data, config.folder / of_corpus(PARTITIONS, corpus), out, progress))
