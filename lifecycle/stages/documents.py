"""Stage `documents`: selects clean, deduplicated documents from the tagged ones: kept, held out and removed."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.selecting.earlier import earlier_corpora
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Splits the tagged documents into kept, held-out and removed ones."""
    assert config.data is not None, "the graph has documents where there is a data section"
    tagging, eval_rows = inputs["tagging"].path, keys.evaluation_files(config)
    earlier = earlier_corpora(config.data.dedup)
    return Outcome(prepare_documents(tagging, config.data, out, progress, config.seed, eval_rows, earlier))
