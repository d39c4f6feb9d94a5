"""Stage `documents`: selects clean, deduplicated documents from the tagged ones: kept, held out and removed."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.documents import document_files
from lifecycle.data.selecting.earlier import EarlierCorpus, earlier_corpora
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
    with naming(corpus):
        return Outcome(prepare_documents(tagging, data, out, progress, config.seed, eval_rows, earlier))
