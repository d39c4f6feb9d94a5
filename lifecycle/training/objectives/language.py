"""Next-token prediction: pre-training (every token counts) and SFT (the mask leaves the assistant's tokens)."""

from collections.abc import Callable
from functools import partial

from lifecycle.core.typing import Batch
from lifecycle.kernels.cross_entropy import cross_entropy
from lifecycle.model.config import ModelConfig, Remat
from lifecycle.model.decoder import Params, forward_train, head
from lifecycle.model.pipeline import own_rows
from lifecycle.training.config import CrossEntropyConfig
from lifecycle.training.objectives.router import Sums, with_routers


def language_objective(config: ModelConfig, train: CrossEntropyConfig) -> Callable[[Params, Batch], Sums]:
    """What pre-training and SFT minimise."""
    return partial(cross_entropy_loss, config, train)


def cross_entropy_loss(config: ModelConfig, train: CrossEntropyConfig, params: Params, batch: Batch) -> Sums:
    """`next_token` as a stage's settings have it."""
    return next_token(config, params, batch, train.remat, train.loss_chunks)


def next_token(
    config: ModelConfig, params: Params, batch: Batch, remat: Remat | None = None, loss_chunks: int = 1
) -> Sums:
    """Summed negative log-likelihood in nats over the positions of `loss_mask`, and how many there are."""
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    hidden, routers = forward_train(config, params, *inputs, remat=remat)
    targets, mask = own_rows(batch["targets"]), own_rows(batch["loss_mask"])
    loss = cross_entropy(hidden, head(config, params), targets, mask, config.logits_soft_cap, loss_chunks)
    return with_routers(config, (loss, mask.sum(), {}), routers)
