"""Likelihoods of texts, for notebooks and scripts; evaluation tasks are in `evals/kinds/`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from lifecycle.evals.scoring import perplexity
from lifecycle.inference.model import Model
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.training.scoring import document_nats


@dataclass(frozen=True)
class TextScore:
    """The negative log-likelihood of one text in nats, EOS included."""

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; comparable between tokenizers."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Perplexity per token, EOS included."""
        return perplexity(self.nats, self.num_tokens)


def score_texts(model: Model, texts: Sequence[str], mesh: Mesh | None = None) -> list[TextScore]:
    """Scores texts, each between BOS and EOS; `mesh` has the weights (default: one device).

    A text longer than the model's context is scored in windows. Raises `ValueError` for an empty text.
    """
    if "" in texts:
        raise ValueError(f"texts[{list(texts).index('')}] is empty: there is nothing to score")
    tokenizer = model.tokenizer
    ids = [
        np.array([tokenizer.bos_id, *tokens, tokenizer.eos_id], np.int32) for tokens in tokenizer.encode_batch(texts)
    ]
    where = mesh or build_mesh(MeshConfig())
    nats = document_nats(model.config, model.params, ids, model.config.max_seq_len, where)
    return [
        TextScore(total, len(tokens) - 1, len(text.encode()))
        for total, tokens, text in zip(nats, ids, texts, strict=True)
    ]
