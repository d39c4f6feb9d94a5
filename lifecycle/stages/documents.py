"""Stage `documents`: selects clean, deduplicated documents from the tagged ones: kept, held out and removed."""

from pathlib import Path
from typing import Any

from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import StepCosts, step_costs
from lifecycle.data.documents import document_files
from lifecycle.data.selecting.earlier import EarlierCorpus, earlier_corpora
from lifecycle.data.selecting.funnel import WITH_DAFT
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.selecting.signatures import TAKEN
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import DOCUMENTS, TAGGING, by_corpus, naming, of_corpus
from lifecycle.stages.stage import Inputs, Outcome


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, corpus: str) -> Outcome:
    """Splits a corpus's tagged documents into kept, held-out and removed ones. What an earlier corpus of the run has is
    a duplicate here, and documents to train on have no text that it holds out."""
    tagging, data = inputs[of_corpus(TAGGING, corpus)].path, config.corpora[corpus]
    eval_rows, earlier = keys.evaluation_files(config), earlier_corpora(data.dedup)
    for other, artifact in by_corpus(DOCUMENTS, inputs).items():
        name = of_corpus(DOCUMENTS, other)
        eval_rows[name] = document_files(artifact.path, "heldout")
        files = [file for split in TAKEN for file in document_files(artifact.path, split)]
        earlier.append(EarlierCorpus(name, files))
    with naming(corpus), step_costs() as costs:
        stats = prepare_documents(tagging, data, out, progress, config.seed, eval_rows, earlier)
    return Outcome(stats, how=[record_of(costs, stats["funnel"][0]["bytes_out"], is_here=data.engine == "native")])


def record_of(costs: StepCosts, num_bytes: int, is_here: bool) -> dict[str, Any]:
    """For the manifest. Daft's work on a cluster is not counted, so what else its steps took says nothing there."""
    record = costs.record(num_bytes)
    for step in () if is_here else WITH_DAFT:
        if step in record["steps"]:
            record["steps"][step]["cpu_s"] = None
    return record
