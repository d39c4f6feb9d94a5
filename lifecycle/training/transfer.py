"""Hyperparameters that transfer across widths: one learning rate, chosen at a base width, serves wider models.

Every weight and its update keep the spectral norm `sqrt(fan_out / fan_in)` (Yang, Simon and Bernstein 2023, "A Spectral
Condition for Feature Learning", condition 1), so that activations and their changes in a step stay of one size as the
width grows. For Adam this is muP (Yang et al. 2022, "Tensor Programs V", table 8):

| parameter | initial deviation | Adam's rate | Muon's rate |
|---|---|---|---|
| layers' matrices, `[fan_in, fan_out]` | `fan_in^-1/2`, as ever | `1 / fan_in` | `sqrt(fan_out / fan_in / max)` |
| embedding: its rows are taken, not summed | constant | constant | - |
| head | `1 / fan_in` | `1 / fan_in` | - |
| norms, biases | constant | constant | - |

`max` is the larger of the two. All are relative to the base, a model with all widths (d_model, d_ff, heads) in
proportion and the same head_dim; a model of the base's own width is not changed by a bit. An embedding that is the head
too cannot have both rows: there the final norm's scale takes over the head's factor, in its initial value and in its
rate. Weight decay stays a share of the learning rate, not of a parameter's own rate: the decay per step is what has to
be the same at every width (Wortsman et al. 2023, "Small-scale proxies", section 3.2).
"""

from typing import Any

import jax
import optax

from lifecycle.model.config import ModelConfig
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, parameters
from lifecycle.model.stacks import MODULES, MODULES_STACK
from lifecycle.training.optimizer_config import OptimizerConfig

WIDTHS = frozenset({"embed", "expert_embed", "heads", "kv_heads", "mlp"})  # the logical axes that grow with the width

type Path = tuple[str, ...]

EMBED, HEAD, LAST_NORM = ("embed",), ("head",), ("norm", "scale")


def scale_by_width(config: OptimizerConfig, model: ModelConfig) -> tuple[optax.GradientTransformation, ...]:
    """The factors on the updates, as one transformation; none without a base width."""
    if config.base_width is None:
        return ()
    declared = {_names(path): known for path, known in jax.tree_util.tree_leaves_with_path(parameters(model))}
    rates = {path: rate(path, known, config, model) for path, known in declared.items()}

    def scaled(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(lambda path, update: update * rates[_names(path)], updates)

    return (optax.stateless(scaled),)


def rate(path: Path, parameter: Parameter, config: OptimizerConfig, model: ModelConfig) -> float:
    """A parameter's learning rate as a multiple of the base width's."""
    assert config.base_width is not None
    wider = model.d_model / config.base_width
    if path == EMBED:
        return _embed_rate(model, wider)
    if _is_last_norm(path):
        return _output_factor(model, wider)
    if parameter.fan_in is None:
        return 1.0
    rows = parameter.shape[parameter.fan_in]
    base_rows = rows / wider if parameter.axes[parameter.fan_in] in WIDTHS else rows
    if config.name != "muon" or not parameter.is_stacked:
        return base_rows / rows
    columns = parameter.shape[-1]
    base_columns = columns / wider if parameter.axes[-1] in WIDTHS else columns
    return _muon_rate(rows, columns) / _muon_rate(base_rows, base_columns)


def at_width(model: ModelConfig, base_width: int | None, params: Params) -> Params:
    """Fresh parameters with the initial sizes that follow from a base width; without one as they are."""
    if base_width is None:
        return params
    wider = model.d_model / base_width

    def sized(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        match _names(path):
            case ("embed",):  # its deviation is d_model^-1/2, which an embedding scale of d_model^1/2 undoes
                return array if model.use_embed_scale else array * wider**0.5
            case ("head",):
                return array * wider**-0.5
            case path if _is_last_norm(path):
                return (array + model.norm_offset) * _output_factor(model, wider) - model.norm_offset
        return array

    return jax.tree_util.tree_map_with_path(sized, params)


def _is_last_norm(path: Path) -> bool:
    """Whether it is the scale of the norm before the head, of the decoder or of its prediction modules."""
    return path == LAST_NORM or path == (MODULES, MODULES_STACK, *LAST_NORM)


def _muon_rate(rows: float, columns: float) -> float:
    """What gives an update of Muon, of spectral norm `0.2 sqrt(max(rows, columns))`, the norm `sqrt(columns / rows)`,
    up to a constant."""
    return (columns / rows / max(rows, columns)) ** 0.5


def _embed_rate(model: ModelConfig, wider: float) -> float:
    return wider**-0.5 if model.use_embed_scale else 1.0


def _output_factor(model: ModelConfig, wider: float) -> float:
    """The factor on the final norm: what makes a sum over d_model entries of the embedding as small as one of the
    head's; 1 where there is a head."""
    return 1 / (wider * _embed_rate(model, wider)) if model.tie_embeddings else 1.0


def _names(path: tuple[Any, ...]) -> Path:
    return tuple(entry.key for entry in path)
