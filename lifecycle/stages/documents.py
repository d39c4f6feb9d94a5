"""Stage `documents`: from sources to clean, deduplicated documents, kept, held out and removed."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.pipeline import prepare_documents
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    del inputs  # the first stage has none
    assert config.data is not None, "the graph has documents where there is a data section"
    return Outcome(prepare_documents(config.data, out, progress, config.seed, keys.evaluation_files(config)))
