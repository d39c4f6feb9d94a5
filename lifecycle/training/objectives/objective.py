"""From a formula to an objective: what a step minimises, as sums over a batch.

Only this module knows both a formula and the machine: the forward pass, this device's rows and positions, the other
devices' contributions, and the routers' terms. A formula of groups sees a segment's sums, so it needs not know where
in a row they come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax

from lifecycle.core.typing import Array, Batch, Float
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.decoder import forward_train
from lifecycle.model.embedding import head
from lifecycle.model.params import Params, reference_of
from lifecycle.model.routing import RouterStats
from lifecycle.model.stacks import SCORE
from lifecycle.parallel.collectives import replicated_share
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import GroupLikelihoods, TokenLikelihoods
from lifecycle.training.objectives.mtp import with_modules
from lifecycle.training.objectives.neftune import STEP, noise_of
from lifecycle.training.objectives.registry import SEGMENTS, ObjectiveKind, objective_kind
from lifecycle.training.objectives.router import with_routers
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.state import param_specs

type Context = Mapping[str, Array]  # totals over a whole batch
type Formula = Callable[[TrainConfig, Any, Context], Sums]  # (the stage's settings, likelihoods, context) -> sums


def nothing(params: Params, batch: Batch) -> Context:
    """The context of an objective whose sums need no other rows."""
    return {}


@dataclass(frozen=True)
class Objective:
    """What a step minimises. On a mesh both functions see this device's shards of parameters and batch.

    `loss(params, batch, context)` gives sums, which over all micro-batches and devices are those of the global batch,
    and so are their gradients. `context(params, batch)` gives totals that add up in the same way; it runs before, over
    the whole global batch and without a gradient: denominators, estimates over the batch, order statistics.

    `held`: how the parameters of other models are sharded that both find beside the stage's own, by name. No step
    changes them, and no checkpoint has them. `has_empty_rows`: batches have room for the longest rows that may come, so
    that whole micro-batches of theirs are often empty; a step passes over these.
    """

    loss: Callable[[Params, Batch, Context], Sums]
    context: Callable[[Params, Batch], Context] = nothing
    held: Params = field(default_factory=dict, hash=False)
    has_empty_rows: bool = False
    needs_step: bool = False  # whether a training step's batch has the column `step`, by which noise is drawn

    @property
    def has_context(self) -> bool:
        """Whether the sums need more than their own rows."""
        return self.context is not nothing

    def __call__(self, params: Params, batch: Batch) -> Sums:
        """The sums of a batch that is the whole of it."""
        return self.loss(params, batch, jax.lax.stop_gradient(self.context(params, batch)))


def build_objective(
    model: ModelConfig, train: TrainConfig, others: Mapping[str, ModelConfig] | None = None
) -> Objective:
    """The objective of a stage with these settings. `others`: the models that its settings `TrainConfig.held` name."""
    kind = objective_kind(train.objective)
    if kind.runs_model:
        return kind.load()(model, train)
    if kind.rows in SEGMENTS:
        return _of_segments(kind, model, train)
    return _of_tokens(kind, model, train, {name: (others or {})[name] for name in train.held})


def _of_tokens(
    kind: ObjectiveKind, model: ModelConfig, train: TrainConfig, held: Mapping[str, ModelConfig]
) -> Objective:
    formula = kind.load()
    plain = train.model_copy(update={"remat": None, "precision": None})

    def of_other(name: str, params: Params, batch: Batch) -> TokenLikelihoods:
        return token_likelihoods(held[name], jax.lax.stop_gradient(params[name]), batch, plain)[0]

    def loss(params: Params, batch: Batch, context: Context) -> Sums:
        others: dict[str, Any] = {name: of_other(name, params, batch) for name in held}
        params = {name: array for name, array in params.items() if name not in held}
        tokens, routers = token_likelihoods(model, params, batch, train)
        tokens = replace(tokens, **others)
        sums = formula(train, tokens, context)
        if train.computed(model).num_mtp_modules:
            sums, of_modules = with_modules(model, train, params, batch, tokens.hidden, sums)
            routers = routers | of_modules
        return with_routers(model, sums, routers)

    specs = {name: param_specs(other) for name, other in held.items()}
    return Objective(loss, nothing, specs, train.samples, needs_step=train.noise_alpha is not None)


def _of_segments(kind: ObjectiveKind, model: ModelConfig, train: TrainConfig) -> Objective:
    formula, of_context, size = kind.load(), kind.load_context(train), SEGMENTS[kind.rows]

    def reference(params: Params) -> Callable[[Batch], TokenLikelihoods] | None:
        if not train.has_own_reference:
            return None
        own, weights = reference_of(model, jax.lax.stop_gradient(params))
        return lambda batch: token_likelihoods(own, weights, batch, train)[0]

    def loss(params: Params, batch: Batch, context: Context) -> Sums:
        routers: dict[str, Any] = {}

        def forward(batch: Batch) -> TokenLikelihoods:
            tokens, stats = token_likelihoods(model, params, batch, train)
            routers.update(stats)
            return tokens

        sums = formula(train, GroupLikelihoods(batch, size, forward, reference(params)), context)
        # all devices of a row's positions have the same sums, so each gives a share
        sums = sums.with_sums(partial(jax.tree.map, lambda value: replicated_share(value, "seq")))
        return with_routers(model, sums, routers)

    if of_context is None:
        return Objective(loss, has_empty_rows=train.samples)

    def context(params: Params, batch: Batch) -> Context:
        groups = GroupLikelihoods(
            batch, size, lambda batch: token_likelihoods(model, params, batch, train)[0], reference(params)
        )
        return jax.tree.map(lambda value: replicated_share(value, "seq"), of_context(train, groups))

    return Objective(loss, context, has_empty_rows=train.samples)


def token_likelihoods(
    model: ModelConfig, params: Params, batch: Batch, train: TrainConfig
) -> tuple[TokenLikelihoods, dict[str, RouterStats]]:
    """A forward pass as a stage's steps make it: the likelihoods of this device's rows, and the routers' statistics.
    Noise is added in steps alone, not where the same rows are measured."""
    inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
    noisy = noise_of(train.noise_alpha, batch) if train.noise_alpha is not None and STEP in batch else None
    hidden, routers = forward_train(model, params, *inputs, train.remat, train.precision, noisy)
    table, cap = head(model, params), model.logits_soft_cap
    return TokenLikelihoods(batch, hidden, table, cap, train.loss_chunks, params.get(SCORE)), routers


def group_logprobs(
    model: ModelConfig,
    params: Params,
    batch: Batch,
    size: int,
    chunks: int = 1,
    precision: Precision | None = None,
    of_others: bool = False,
    length_alpha: float | None = None,
) -> Float[Array, "B P k"]:
    """The log-probability of each segment of a batch's groups of `size`, or of the sequences beside them; on a mesh, of
    this device's rows. `chunks` of the vocabulary; `precision`: of the layers' products; `length_alpha` as in
    `GroupLikelihoods.logprobs_beyond`."""

    def forward(batch: Batch) -> TokenLikelihoods:
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        hidden, _ = forward_train(model, params, *inputs, precision=precision)
        return TokenLikelihoods(batch, hidden, head(model, params), model.logits_soft_cap, chunks)

    groups = GroupLikelihoods(batch, size, forward)
    return (groups.others if of_others else groups).logprobs_beyond(length_alpha)
