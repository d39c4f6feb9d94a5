"""The programs that a plan compiles, as they are run: the train step, and the engine's prefill and decode."""

from typing import TYPE_CHECKING, Any

from lifecycle.model.config import ModelConfig, forward_flops_per_token
from lifecycle.planning.estimate.step import Work
from lifecycle.training.config import CrossEntropyConfig, TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


def train_work(model: ModelConfig, train: TrainConfig) -> Work:
    """What one train step needs: a forward pass and a backward pass of twice its products."""
    tokens = train.global_batch_size * train.seq_len
    half, full = (3 * tokens * forward_flops_per_token(model, train.seq_len, causal) for causal in (True, False))
    return Work(tokens=tokens, flops=half, flops_full_attention=full, runs=train.steps)


def prefill_work(model: ModelConfig, length: int) -> Work:
    """What the longest chunk of a prompt needs, half-way through a context of `length`: the head is for its last token
    only."""
    from lifecycle.inference.scheduler import BUCKETS

    tokens = BUCKETS[-1]
    spared = 2 * (tokens - 1) * model.d_model * model.vocab_size
    half, full = (tokens * forward_flops_per_token(model, length, causal) - spared for causal in (True, False))
    return Work(tokens=tokens, flops=half, flops_full_attention=full, runs=1)


def decode_work(model: ModelConfig, num_slots: int, length: int) -> Work:
    """What a token for each of `num_slots` needs, on average over a context of `length`: two FLOPs for each parameter
    that it uses, and attention."""
    half, full = (num_slots * forward_flops_per_token(model, length, causal) for causal in (True, False))
    return Work(tokens=num_slots, flops=half, flops_full_attention=full, runs=1)


def seen_share(model: ModelConfig, seq_len: int) -> float:
    """The share of attention's square that queries see: 0.5 where all layers are causal over the whole row."""
    half, full = (forward_flops_per_token(model, seq_len, causal) for causal in (True, False))
    square = 2 * model.num_layers * model.num_heads * (model.head_dim + model.v_head_dim) * seq_len
    return 1 - (full - half) / square


def lower_train(model: ModelConfig, train: CrossEntropyConfig, mesh: "Mesh") -> Any:
    """Pre-training's step for the mesh's devices, a `jax.stages.Lowered`."""
    from lifecycle.training.lowering import trace_train_step

    return trace_train_step(model, train, mesh).lower()


def lower_decode(model: ModelConfig, num_slots: int, length: int, mesh: "Mesh") -> Any:
    """The engine's decode dispatch over all slots. Its loop over steps has no fixed length: it counts as one step."""
    import jax
    import jax.numpy as jnp

    from lifecycle.inference.programs import MAX_STOP_IDS, DecodeRows, decode

    with jax.set_mesh(mesh):
        params, cache = _params_and_cache(model, num_slots, length, mesh)
        ints = _array(mesh, (num_slots,), jnp.int32)
        stops = _array(mesh, (num_slots, MAX_STOP_IDS), jnp.int32)
        want_top = _array(mesh, (), jnp.bool_)
        rows = DecodeRows(ints, ints, ints, stops, _sampling(mesh, num_slots), want_top)
        return decode.lower(model, model.vocab_size, params, cache, rows, _array(mesh, (), jnp.int32))


def lower_prefill(model: ModelConfig, num_slots: int, length: int, mesh: "Mesh") -> Any:
    """The engine's prefill of its longest chunk into one slot."""
    import jax
    import jax.numpy as jnp

    from lifecycle.inference.programs import PromptRows, prefill
    from lifecycle.inference.scheduler import BUCKETS

    with jax.set_mesh(mesh):
        params, cache = _params_and_cache(model, num_slots, length, mesh)
        number = _array(mesh, (1,), jnp.int32)
        tokens = _array(mesh, (1, BUCKETS[-1]), jnp.int32)
        want_top = _array(mesh, (), jnp.bool_)
        rows = PromptRows(number, tokens, number, number, _sampling(mesh, 1), want_top)
        return prefill.lower(model, model.vocab_size, params, cache, rows)


def _array(mesh: "Mesh", shape: tuple[int, ...], dtype: Any) -> Any:
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))


def _params_and_cache(model: ModelConfig, num_slots: int, length: int, mesh: "Mesh") -> tuple[Any, Any]:
    """Shapes of both in the compute dtype, which is how the engine holds them."""
    import jax

    from lifecycle.model.cache import init_cache
    from lifecycle.model.decoder import abstract_params, compute_dtype

    dtype = compute_dtype(model)
    params = jax.tree.map(lambda p: _array(mesh, p.shape, dtype), abstract_params(model))
    cache = jax.eval_shape(lambda: init_cache(model, num_slots, length, dtype))
    return params, jax.tree.map(lambda c: _array(mesh, c.shape, c.dtype), cache)


def _sampling(mesh: "Mesh", rows: int) -> Any:
    import jax.numpy as jnp

    from lifecycle.inference.sampling import SamplingRows

    floats, ints = _array(mesh, (rows,), jnp.float32), _array(mesh, (rows,), jnp.int32)
    return SamplingRows(floats, ints, floats, floats, _array(mesh, (rows, 2), jnp.uint32))
