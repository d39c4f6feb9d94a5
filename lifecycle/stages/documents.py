"""Stage `documents`: from sources to clean, deduplicated documents, kept, held out and removed."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.pipeline import prepare_documents
from lifecycle.evals.rows import local_files
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    del inputs  # the first stage has none
    eval_rows = [file for files in local_files(config.evaluate).values() for file in files]
    return Outcome(prepare_documents(config.data, out, progress, config.seed, eval_rows))
