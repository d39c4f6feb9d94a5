"""Memory and time of a mesh, micro-batch and rematerialisation by arithmetic: what a search prunes with.

Per device, for the train step as it is built: float32 parameters, gradients and moments cut over all axes but
`replica`; a layer's weights gathered in the compute dtype before use, forward and backward; Megatron pairs over
`tensor` with the rows' positions cut between them; keys and values gathered over `context`; tokens exchanged over
`expert`. Times take products at `PRODUCT_SHARE` of the peak and collectives as not hidden. It orders candidates; the
compiler decides. Source of the counts: Korthikanti et al. 2022, "Reducing Activation Recomputation", sections 4 and 5;
Rajbhandari et al. 2020, "ZeRO", section 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.core.mesh import MeshConfig
from lifecycle.model.config import ModelConfig, Remat, forward_flops_per_token, num_params
from lifecycle.planning.collectives import Collective
from lifecycle.planning.network import Network
from lifecycle.planning.topology import Topology
from lifecycle.training.config import TrainConfig

PRODUCT_SHARE = (
    0.8  # of the peak: the compiler's estimate for large products with the raised VMEM limit is 0.92 to 0.98
)
COMPUTE_BYTES = 2  # bfloat16
STATE_BYTES = {"adamw": 12, "muon": 12}  # a parameter with its moments, float32; Muon's is at most this
LOSS_TOKENS = 4096  # of a block of the output loss

# Policies to choose from, by name: what a layer keeps beside its input.
POLICIES: dict[str, Remat] = {
    "nothing": {},
    "attention": {"attention_out": "save"},
    "attention, q, k, v": {"attention_out": "save", "q": "save", "k": "save", "v": "save"},
    "all products": {
        "attention_out": "save", "q": "save", "k": "save", "v": "save", "middle": "save", "gate": "save", "up": "save",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One way to run the step."""

    mesh: MeshConfig
    grad_accum: int
    policy: str

    @property
    def name(self) -> str:
        return f"{mesh_name(self.mesh)}, grad_accum={self.grad_accum}, keeps {self.policy}"


def mesh_name(mesh: MeshConfig) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in mesh.plain().items() if size > 1) or "one device"


@dataclass(frozen=True)
class Forecast:
    """What arithmetic says of a candidate, per device."""

    state_bytes: float
    saved_bytes: float
    work_bytes: float
    compute_s: float
    network_s: float

    @property
    def memory_bytes(self) -> float:
        return self.state_bytes + self.saved_bytes + self.work_bytes

    @property
    def step_s(self) -> float:
        return self.compute_s + self.network_s


@dataclass(frozen=True)
class _Sizes:
    """A layer's matrices and a device's share of the work."""

    tokens: int  # of a micro-batch on a device, all positions of its context part
    attention: int  # weights of a layer
    feed_forward: int  # of a dense layer, or of all experts
    used: int  # of the feed-forward, those that one token uses
    width: int  # d_ff that a token uses: of all its experts together


def forecast(
    model: ModelConfig, train: TrainConfig, candidate: Candidate, topology: Topology, network: Network
) -> Forecast:
    """Memory and time of one step."""
    sizes = _sizes(model, train, candidate)
    state = num_params(model) * STATE_BYTES[train.optimizer.name] / _shards(candidate.mesh)
    return Forecast(
        state_bytes=state,
        saved_bytes=model.num_layers * sizes.tokens * _saved_per_token(model, candidate, sizes),
        work_bytes=_work_bytes(model, candidate, sizes),
        compute_s=_compute_s(model, train, candidate, topology, sizes),
        network_s=sum(c.runs * network.seconds(c) for c in traffic(model, candidate, sizes)),
    )


def _shards(mesh: MeshConfig) -> int:
    return mesh.size // mesh.replica


def _sizes(model: ModelConfig, train: TrainConfig, candidate: Candidate) -> _Sizes:
    mesh, moe = candidate.mesh, model.moe
    rows = train.global_batch_size // candidate.grad_accum // (mesh.replica * mesh.fsdp * mesh.expert)
    head = model.num_heads * (model.head_dim + model.v_head_dim)
    attention = model.d_model * (head + model.num_kv_heads * (model.head_dim + model.v_head_dim))
    width = model.d_ff if moe is None else moe.d_ff * (moe.experts_per_token + moe.num_shared_experts)
    whole = width if moe is None else moe.d_ff * (moe.num_experts + moe.num_shared_experts)
    used, all_of_it = 3 * model.d_model * width, 3 * model.d_model * whole
    return _Sizes(rows * train.seq_len // mesh.context, attention, all_of_it, used, width)


def _saved_per_token(model: ModelConfig, candidate: Candidate, sizes: _Sizes) -> float:
    """Bytes that a layer keeps of each token."""
    tensor = candidate.mesh.tensor
    heads, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    by_name = {
        "q": COMPUTE_BYTES * heads,
        "k": COMPUTE_BYTES * keys,
        "v": COMPUTE_BYTES * model.num_kv_heads * model.v_head_dim,
        "attention_out": (COMPUTE_BYTES * model.v_head_dim + 4) * model.num_heads,  # with its log-sum-exp
        "middle": COMPUTE_BYTES * model.d_model,
        "gate": COMPUTE_BYTES * sizes.width,
        "up": COMPUTE_BYTES * sizes.width,
    }
    kept = sum(by_name[name] for name, what in POLICIES[candidate.policy].items() if what == "save")
    return (COMPUTE_BYTES * model.d_model + kept) / tensor


def _work_bytes(model: ModelConfig, candidate: Candidate, sizes: _Sizes) -> float:
    """Gradients, two layers' gathered weights, one layer's backward pass, a block of the loss."""
    mesh = candidate.mesh
    gradients = 4 * num_params(model) / _shards(mesh)
    layer = sizes.attention + sizes.feed_forward / mesh.expert
    gathered = 2 * COMPUTE_BYTES * layer / mesh.tensor
    widest = 4 * model.d_model + (4 * sizes.width + 3 * model.num_heads * model.head_dim) / mesh.tensor
    loss = 2 * 4 * min(LOSS_TOKENS, sizes.tokens) * model.vocab_size / mesh.tensor
    table = 2 * COMPUTE_BYTES * model.vocab_size * model.d_model / mesh.tensor
    return gradients + gathered + COMPUTE_BYTES * sizes.tokens * widest + loss + table


def _compute_s(
    model: ModelConfig, train: TrainConfig, candidate: Candidate, topology: Topology, sizes: _Sizes
) -> float:
    """Products at their share of the peak: three times the forward pass, and what is computed again."""
    tokens = train.global_batch_size * train.seq_len
    forward = tokens * forward_flops_per_token(model, train.seq_len)
    kept = POLICIES[candidate.policy]
    again = 2 * tokens * model.num_layers * (sizes.attention * 3 / 4 + sizes.used * 2 / 3)  # not o, not down
    products = forward - 2 * tokens * (model.num_layers * (sizes.attention + sizes.used))
    scores = max(0.0, products - 2 * tokens * model.d_model * model.vocab_size)
    if "q" in kept:
        again -= 2 * tokens * model.num_layers * sizes.attention * 3 / 4
    if "gate" in kept:
        again -= 2 * tokens * model.num_layers * sizes.used * 2 / 3
    if "attention_out" not in kept:
        again += scores
    rate = topology.num_devices * topology.chip.bf16_flops * PRODUCT_SHARE
    return (3 * forward + again) / rate


def traffic(model: ModelConfig, candidate: Candidate, sizes: _Sizes) -> Sequence[Collective]:
    """The step's collectives as far as they are large."""
    mesh, layers, accum = candidate.mesh, model.num_layers, candidate.grad_accum
    hidden = COMPUTE_BYTES * sizes.tokens * model.d_model
    layer = COMPUTE_BYTES * (sizes.attention + sizes.feed_forward / mesh.expert) / mesh.tensor
    tables = COMPUTE_BYTES * num_params(model) / mesh.tensor - layers * layer * mesh.expert
    keys = COMPUTE_BYTES * sizes.tokens * mesh.context * 2 * model.num_kv_heads * model.head_dim / mesh.tensor
    data = tuple(axis for axis in ("fsdp", "context") if getattr(mesh, axis) > 1)
    rows = [
        ("all-gather", data, layer, 2 * layers * accum),
        ("reduce-scatter", data, layer, layers * accum),
        ("all-gather", data, max(0.0, tables), 2 * accum),
        ("reduce-scatter", data, max(0.0, tables), accum),
        ("all-gather", ("tensor",), hidden, 4 * layers * accum),  # two forward, two for the transposed sums
        ("reduce-scatter", ("tensor",), hidden, 4 * layers * accum),
        ("all-gather", ("tensor",), hidden, (0 if "q" in POLICIES[candidate.policy] else 2) * layers * accum),
        ("all-gather", ("context",), keys, 2 * layers * accum),
        ("reduce-scatter", ("context",), keys, layers * accum),
        ("all-reduce", ("replica",), 4 * num_params(model) / _shards(mesh), 1),
    ]
    if model.moe is not None:
        rows.append(("all-to-all", ("expert",), hidden * model.moe.experts_per_token, 6 * layers * accum))
    return [
        Collective(kind, axes, ways, round(size), runs, False, 0, (), kind, "", "", None)
        for kind, axes, size, runs in rows
        if (ways := math.prod(getattr(mesh, axis) for axis in axes)) > 1 and runs and size >= 1
    ]
