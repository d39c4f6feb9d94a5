"""Stage `tokens`: tokenises documents into ArrayRecord shards."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.documents import document_files
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.tagging.engine import engine_of
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.tokenizer import load_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Tokenises the kept and held-out documents."""
    assert config.data is not None, "the graph has tokens where there is a data section"
    documents, tokenizer = inputs["documents"].path, load_tokenizer(inputs["tokenizer"].path)
    engine = engine_of(config.data, sum(path.stat().st_size for path in document_files(documents, "kept")))
    return Outcome(write_token_shards(documents, tokenizer, out, progress, engine))
