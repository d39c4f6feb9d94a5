"""Stage `tokens`: tokenises documents into ArrayRecord shards."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.shards import write_token_shards
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.tokenizer import load_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Tokenises the kept and held-out documents."""
    del config  # the tokenizer decides everything
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    return Outcome(write_token_shards(inputs["documents"].path, tokenizer, out, progress))
