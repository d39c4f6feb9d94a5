"""Stage `tagging`: reads the sources into documents with a column for every measurement."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.sources import fetch_sources
from lifecycle.data.tagging import tag_documents
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Reads the sources and measures every document."""
    del inputs  # the first stage has none
    assert config.data is not None, "the graph has tagging where there is a data section"
    fetch_sources(config.data)
    return Outcome(tag_documents(config.data, out, progress))
