"""Low-rank matrices trained beside a frozen model: LoRA, rsLoRA, DoRA, and their frozen matrices in NF4 (QLoRA).

Beside a matrix `W [D, F]` are `a [rank, D]` and `b [rank, F]`; the layer multiplies by `W + s a^T b` (Hu et al. 2021,
section 4.1). They are a tree of their own, `adapter`, like that of the parameters, and the only ones that are trained:
the gradient of `W` is never made.

The product goes through the two narrow matrices, `x W + s (x a^T) b`. Merging them before, `x (W + s a^T b)`, needs the
gradient of the sum for theirs, as many FLOPs as a trained `W` has: 6 N D F instead of 4 N D F + 6 N rank (D + F), for N
tokens. It would pay above a rank of D F / 3 (D + F), 683 of a square matrix of 4,096. And it is written, scattered over
the mesh and kept in the compute dtype, 2 D F bytes, where the narrow ones' gradients are rank / D of that.

DoRA gives each column of the sum a trained length, its magnitude (Liu et al. 2024, section 4.1): the product of column
`f` is scaled by `m_f / |W + s a^T b|_f`, whose denominator has no gradient (section 4.3). It is summed on each device's
shard of the matrix, before that is gathered.

What must hold: with a fresh adapter (`b` is zero) the model computes what it did without one.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array, Float, PRNGKeyArray
from lifecycle.kernels.adapted import LowRankWeight
from lifecycle.kernels.nf4 import BLOCK, Nf4Weight, columns_per_group, dense, quantised
from lifecycle.kernels.quantised import QuantisedWeight
from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.parameter import Parameter
from lifecycle.model.quantised import is_quantised
from lifecycle.model.stacks import ADAPTER

type Tree = dict[str, Any]

ABSORBED = "kv_up"
CODES = "codes"  # an array of each matrix in NF4, by which it is known


def is_adapted(name: str, declared: Parameter) -> bool:
    """Whether a stacked parameter of this name within its layer is a matrix that can have an adapter. Routed experts
    have none, nor the up-projection of latent attention, which decoding multiplies into the queries."""
    return is_quantised(declared) and len(declared.axes) == 3 and name.rpartition(".")[2] != ABSORBED


def adapter_parameters(adapter: AdapterConfig, blocks: Tree) -> Tree:
    """The declarations of an adapter's arrays, from those of the blocks."""

    def pair(path: str, declared: Parameter) -> Tree | None:
        name = path.rpartition(".")[2]
        if not is_adapted(name, declared) or (adapter.targets is not None and name not in adapter.targets):
            return None
        (layers, rows, columns), (stack, of_rows, of_columns) = declared.shape, declared.axes
        made = {
            "a": Parameter((layers, adapter.rank, rows), (stack, None, of_rows), is_matrix=True, fan_in=-1),
            "b": Parameter((layers, adapter.rank, columns), (stack, None, of_columns), is_matrix=True, fan_in=-2),
        }
        if adapter.kind == "dora":
            made["magnitude"] = Parameter((layers, columns), (stack, of_columns), is_matrix=False)
        return made

    return {"blocks": _pruned(_mapped(blocks, pair))}


def held_parameters(adapter: AdapterConfig, blocks: Tree) -> Tree:
    """The declarations of the frozen blocks as they are held."""
    if adapter.base is None:
        return blocks

    def held(path: str, declared: Parameter) -> Any:
        if not is_quantised(declared):
            return declared
        *stack, rows, columns = declared.shape
        *of_stack, of_rows, of_columns = declared.axes
        if rows % BLOCK:
            raise ConfigError(
                f"adapter.base=nf4 has blocks of {BLOCK} rows, and {path} has {rows}; leave adapter.base out"
            )
        groups = columns // columns_per_group(columns)

        def array(dtype: str, depth: int, width: int, axis: str | None) -> Parameter:
            axes = (*of_stack, of_rows, axis)
            return Parameter((*stack, depth, width), axes, is_matrix=False, is_float32=dtype == "float32", dtype=dtype)

        return {
            CODES: array("uint8", rows // 2, columns, of_columns),
            "scales": array("uint8", rows // BLOCK, columns, of_columns),
            "spans": array("float32", rows // BLOCK, groups, None),
            "means": array("float32", rows // BLOCK, groups, None),
        }

    return _mapped(blocks, held)


def held_blocks(adapter: AdapterConfig, declared: Tree, blocks: Tree) -> Tree:
    """The frozen blocks as they are held, from plain arrays."""
    if adapter.base is None:
        return blocks

    def held(known: Parameter, array: Array) -> Any:
        if not is_quantised(known):
            return array
        made = quantised(array)
        return {name: getattr(made, name) for name in (CODES, "scales", "spans", "means")}

    return jax.tree.map(held, declared, blocks)


def fresh_adapter(adapter: AdapterConfig, declared: Tree, held: Tree, key: PRNGKeyArray) -> Tree:
    """An adapter that changes nothing, in float32, for `held` blocks: `a` as PEFT draws it, uniform to `D^-1/2`; `b`
    zero; magnitudes the lengths of the columns. Values depend on the key and the matrix's name only."""
    bases = weights_of(held)

    def pair(path: str, known: Tree) -> Tree:
        drawn = jax.random.fold_in(key, zlib.crc32(path.encode()))
        bound = known["a"].shape[-1] ** -0.5
        made = {
            "a": jax.random.uniform(drawn, known["a"].shape, minval=-bound, maxval=bound),
            "b": jnp.zeros(known["b"].shape),
        }
        if "magnitude" in known:
            made["magnitude"] = lengths(_at(bases, path))
        return made

    return {"blocks": _mapped(adapter_parameters(adapter, declared)["blocks"], pair, is_pair)}


def lengths(weight: Any) -> Float[Array, "*stack F"]:
    """The length of each column of a plain or NF4 weight."""
    return jnp.sqrt(jnp.square(plain(weight)).sum(-2))


def column_lengths(squares: Float[Array, "*stack F"]) -> Float[Array, "*stack F"]:
    """The lengths to divide by, from their squares; not 0, so that a column of zeros stays one."""
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))


def adapted_blocks(adapter: AdapterConfig | None, params: Tree) -> Tree:
    """The blocks of a model as its layers take them: with their adapter's matrices beside them."""
    if adapter is None:
        return params["blocks"]
    pairs = params[ADAPTER]["blocks"]

    def beside(path: str, weight: Any) -> Any:
        pair = _at(pairs, path)
        if pair is None:
            return weight
        return LowRankWeight(weight, pair["a"], pair["b"], pair.get("magnitude"), adapter.scale)

    return _mapped(weights_of(params["blocks"]), beside)


def trained_apart(blocks: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Of blocks as layers take them: what is trained, and the blocks again from that, in any form."""

    def sides(weight: Any) -> Any:
        return (weight.a, weight.b, weight.magnitude) if isinstance(weight, LowRankWeight) else None

    def joined(weight: Any, own: Any) -> Any:
        if own is None:
            return weight
        a, b, magnitude = own
        return LowRankWeight(weight.weight, a, b, magnitude, weight.scale)

    def whole(trained: Tree) -> Tree:
        return jax.tree.map(joined, blocks, trained, is_leaf=_is_form)

    return jax.tree.map(sides, blocks, is_leaf=_is_form), whole


def merged_blocks(adapter: AdapterConfig, params: Tree) -> Tree:
    """The blocks with the adapter added to them, plain arrays; those that it changes, and those in NF4, in float32."""

    def merge(weight: Any) -> Any:
        if isinstance(weight, LowRankWeight):
            return merged(plain(weight.weight), weight.a, weight.b * weight.scale, weight.magnitude)
        return plain(weight) if isinstance(weight, Nf4Weight) else weight

    return jax.tree.map(merge, adapted_blocks(adapter, params), is_leaf=_is_form)


def merged(
    weight: Float[Array, "*stack D F"],
    a: Float[Array, "*stack rank D"],
    b: Float[Array, "*stack rank F"],
    magnitude: Float[Array, "*stack F"] | None,
) -> Float[Array, "*stack D F"]:
    """`W + a^T b` in float32, each column of the magnitude's length if there is one."""
    whole = weight.astype(jnp.float32) + jnp.einsum("...rd,...rf->...df", a, b, precision="highest")
    if magnitude is None:
        return whole
    return whole * (magnitude / column_lengths(jnp.square(whole).sum(-2)))[..., None, :]


def plain(weight: Any) -> Float[Array, "*stack D F"]:
    """A frozen weight as a plain array in float32."""
    return dense(weight) if isinstance(weight, Nf4Weight) else weight.astype(jnp.float32)


def weights_of(blocks: Tree) -> Tree:
    """Held blocks with a weight at each matrix: an array, or `Nf4Weight`."""

    def form(_: str, held: Any) -> Any:
        return Nf4Weight(**held) if isinstance(held, dict) else held

    return _mapped(blocks, form, lambda node: CODES in node)


def is_pair(node: Tree) -> bool:
    """Whether a node of an adapter's tree is a matrix's arrays."""
    return "a" in node and "b" in node


def _is_form(node: Any) -> bool:
    return isinstance(node, LowRankWeight | Nf4Weight | QuantisedWeight)


def _mapped(tree: Tree, of: Callable[[str, Any], Any], is_leaf: Callable[[Tree], bool] = lambda _: False) -> Tree:
    """The tree of dicts with what `of` makes of each leaf and its dotted path."""

    def walk(path: str, node: Any) -> Any:
        if isinstance(node, dict) and not is_leaf(node):
            return {key: walk(f"{path}.{key}" if path else key, value) for key, value in node.items()}
        return of(path, node)

    return walk("", tree)


def _at(tree: Tree, path: str) -> Any:
    """The node at a dotted path; None if there is none."""
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _pruned(tree: Tree) -> Tree:
    """The tree without `None`s and what is empty without them."""
    inner = {key: _pruned(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}
