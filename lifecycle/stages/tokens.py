"""Stage `tokens`: tokenises documents into ArrayRecord shards."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.documents import document_files
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.tagging.engine import engine_of
from lifecycle.data.topic_names import NONE
from lifecycle.data.topics import topics_of
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import DOCUMENTS, by_corpus
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.tokenizer import load_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Tokenises the kept and held-out documents of all corpora, with the first one's engine."""
    documents = {corpus: artifact.path for corpus, artifact in by_corpus(DOCUMENTS, inputs).items()}
    tokenizer, first = load_tokenizer(inputs["tokenizer"].path), next(iter(config.corpora.values()))
    files = [path for folder in documents.values() for path in document_files(folder, "kept")]
    topics = {corpus: own for corpus, data in config.corpora.items() if (own := topics_of(data)) is not None}
    counted = {corpus: own.count(documents[corpus]) for corpus, own in topics.items()}
    for corpus, of in counted.items():
        if of["without"]:
            progress.note(
                f"{of['without']:,} documents have no topic in {topics[corpus].path}, and are SOURCE/{NONE} in mixtures"
            )
    with engine_of(first, sum(path.stat().st_size for path in files)) as engine:
        stats = write_token_shards(
            documents, tokenizer, out, progress, engine, num_shards=config.shards.count, topics=topics
        )
    lost, num_tokens = (sum(split[key] for split in stats["splits"].values()) for key in ("unknown_tokens", "tokens"))
    if lost:
        progress.note(
            f"{lost:,} of {num_tokens:,} tokens stand for characters that the tokenizer cannot "
            "write: they are lost; one with byte_fallback, or more of such text in its sample, keeps them"
        )
    return Outcome(stats | ({"topics": counted} if counted else {}))
