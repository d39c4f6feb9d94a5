"""A reward model of the same run as a reward: its score of a prompt with its completion."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import compiler_options
from lifecycle.core.typing import Array, Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import on_mesh, shard_batch
from lifecycle.rl.config import RolloutConfig
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.group_rows import Group, packed_groups
from lifecycle.training.micro_batches import of_filled
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.objective import token_likelihoods
from lifecycle.training.objectives.reward_model import rewards
from lifecycle.training.state import param_specs

NAME = "reward_model"  # among a completion's rewards

type Ids = tuple[Sequence[int], Sequence[int]]  # a prompt's, and its completion's
type ModelReward = Callable[[Sequence[Ids]], list[float]]


def model_reward(model: ModelConfig, params: Params, settings: RolloutConfig, mesh: Mesh) -> ModelReward:
    """The function that scores completions by a reward model's weights, which are on `mesh`: in batches like a step's,
    of as many as fit whatever their lengths."""
    plain = settings.model_copy(update={"remat": None, "precision": None})

    def local(params: Params, batch: Batch) -> Array:
        def of_part(part: Batch) -> Array:
            return rewards(GroupLikelihoods(part, 1, lambda rows: token_likelihoods(model, params, rows, plain)[0]))

        return of_filled(of_part, batch, settings.grad_accum, mesh)

    options = compiler_options(mesh.devices.flat[0].device_kind)
    scores = on_mesh(local, mesh, param_specs(model), spec("loss_rows"))
    jitted = jax.jit(scores, out_shardings=NamedSharding(mesh, P()), compiler_options=options)

    def score(answers: Sequence[Ids]) -> list[float]:
        parts = [answers[begin : begin + settings.fits] for begin in range(0, len(answers), settings.fits)]
        return [value for part in parts for value in of_batch(part)]

    def of_batch(answers: Sequence[Ids]) -> list[float]:
        groups = [Group([_answer(*ids)]) for ids in answers]
        batch = packed_groups(groups, settings.seq_len, settings.global_batch_size, settings.grad_accum)
        found = np.asarray(jax.device_get(jitted(params, shard_batch(batch, mesh))))[..., 0]
        values = np.zeros(len(groups))
        is_there = batch["group_mask"] > 0
        values[batch["group_ids"][is_there]] = found[is_there]
        return values.tolist()

    return score


def _answer(prompt: Sequence[int], completion: Sequence[int]) -> EncodedRow:
    return EncodedRow([*prompt, *completion], [False] * len(prompt) + [True] * len(completion))
