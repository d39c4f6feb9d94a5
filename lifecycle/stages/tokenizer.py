"""Stage `tokenizer`: trains one on kept text, or takes an existing one; measures it on held-out text."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.documents import read_documents
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.text.tokenizer import bytes_per_token, load_tokenizer, train_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    documents = inputs["documents"].path
    if config.tokenizer.kind == "sentencepiece" and config.tokenizer.path is None:
        progress.note(f"training on up to {config.tokenizer.sample_bytes / 1e6:g} MB of kept text")
    kept = (row["text"] for row in read_documents(documents, "kept", ["text"]))
    stats = train_tokenizer(config.tokenizer, kept, out, config.seed)
    config.model.with_vocab(stats["vocab_size"])
    heldout = (row["text"] for row in read_documents(documents, "heldout", ["text"]))
    return Outcome(stats | {"heldout_bytes_per_token": bytes_per_token(load_tokenizer(out), heldout)})
