"""Next-token prediction: pre-training (every token counts) and SFT (the mask leaves the assistant's tokens)."""

from lifecycle.core.typing import Array, Batch
from lifecycle.kernels.cross_entropy import cross_entropy
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, forward, head

type Sums = tuple[Array, Array, dict[str, Array]]


def next_token(config: ModelConfig, params: Params, batch: Batch) -> Sums:
    """Summed negative log-likelihood in nats over the positions of `loss_mask`, and how many there are."""
    hidden = forward(config, params, batch["tokens"], batch["positions"], batch["segment_ids"])
    loss = cross_entropy(hidden, head(config, params), batch["targets"], batch["loss_mask"])
    return loss, batch["loss_mask"].sum(), {}
