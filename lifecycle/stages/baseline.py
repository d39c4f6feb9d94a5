"""Stage `baseline`: trigram models with the same tokenizer and split, which the language model has to beat."""

from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.artifact import Artifact
from lifecycle.core.progress import Progress
from lifecycle.data.documents import read_documents
from lifecycle.data.shards import TokenShards
from lifecycle.evals.results import write_results
from lifecycle.evals.trigram import bits_per_byte, fit_trigram
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import DOCUMENTS, by_corpus
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.training.packing import permutation


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, trained: str) -> Outcome:
    """Fits one trigram on as many tokens as the stage `trained` has seen, and one on the full training split."""
    shards = TokenShards(inputs["tokens"].path, "train")
    heldout = TokenShards(inputs["tokens"].path, "heldout")
    corpora = by_corpus(DOCUMENTS, inputs).values()
    held = [row for of in corpora for row in read_documents(of.path, "heldout", ["id", "text"])]
    documents = [heldout[number] for number in range(len(heldout))]
    sizes = [len(row["text"].encode()) for row in held]
    order = permutation(config.seed, 0, "baseline", len(shards))
    stats: dict[str, Any] = {}
    results = []
    for name, tokens in (("seen", _tokens_seen(inputs[trained], shards)), ("whole", shards.num_tokens)):
        progress.note(f"trigram of {tokens / 1e6:.2f} M tokens")
        chosen = order[: int(np.searchsorted(np.cumsum(shards.lengths[order]), tokens)) + 1]
        model = fit_trigram([shards[int(i)] for i in chosen], shards.index["vocab_size"], shards.index["bos_id"])
        result = bits_per_byte(model, documents, [row["id"] for row in held], sizes, f"trigram-{name}")
        results.append(result)
        stats[name] = {"tokens": int(shards.lengths[chosen].sum()), "bits_per_byte": result.mean}
    write_results(results, out)
    return Outcome(stats)


def _tokens_seen(trained: Artifact, shards: TokenShards) -> int:
    """The number of tokens that a training stage has read, capped at the size of the training split."""
    return min(trained.stats["tokens"], shards.num_tokens)
