"""Stage `tagging`: reads the sources into documents with a column for every measurement."""

from contextlib import suppress
from pathlib import Path

from lifecycle.core.artifact import ArtifactError, open_artifact
from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import step_costs
from lifecycle.data.measures.filters import require_usable_files
from lifecycle.data.reading.sources import fetch_sources
from lifecycle.data.selecting.preference import criteria_of
from lifecycle.data.tagging.code_version import may_be_repaired
from lifecycle.data.tagging.tagging import JOIN, tag_documents
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import naming, of_corpus
from lifecycle.stages.stage import Inputs, Outcome

PARTITIONS = "partitions"  # the folder beside the artifacts with what tagging has made, for its next run


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, corpus: str) -> Outcome:
    """Reads a corpus's sources and measures every document."""
    del inputs  # the first stage has none
    data = config.corpora[corpus]
    with naming(corpus), step_costs() as costs:
        criteria_of(data)  # a mistake in them is told before the sources are read, and so is one in lists
        require_usable_files(data)
        fetch_sources(data)
        _tell_of_failures(out.with_name(out.name.removesuffix(".partial")), progress)
        stats = tag_documents(data, config.folder / of_corpus(PARTITIONS, corpus), out, progress)
    return Outcome(stats, how=[costs.record(costs.num_bytes, {JOIN: stats["bytes"]})])


def _tell_of_failures(before: Path, progress: Progress) -> None:
    """Says why an artifact that was finished is made again, if it is there."""
    with suppress(ArtifactError):
        stats = open_artifact(before).stats
        if may_be_repaired(stats):
            failed = f"{stats['failed']:,} of its files had failed, in other code"
            progress.note(f"{before.name}: {failed}: reading the sources again")
