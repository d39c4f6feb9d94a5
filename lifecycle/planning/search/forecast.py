"""Time of a candidate by arithmetic: its products, kernels and collectives, from the same counts as its memory.

Products run at `PRODUCT_SHARE` of the peak, kernels at a plan's assumed share, and collectives are fully exposed.
Copies to the host are hidden as the compiler hides them: it overlaps them with products, whose time it knows, but not
with kernels. So in a step that is 82 % products (8B on v5p), 13 % of the copies' time is exposed in the compiled
schedule and 18 % here; in one that is 91 % kernels (Mixtral), 82 % and 91 %. How close this comes to compiled steps and
to the lowering contracts: `tests/planning/search/test_planning_forecast.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token
from lifecycle.parallel.axes import RULES
from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.kernels import ASSUMED_SHARE
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.search.candidates import Candidate, axis_size
from lifecycle.planning.search.footprint import (
    COMPUTE_BYTES,
    FLOAT_BYTES,
    SPARED_BY,
    DeviceShare,
    Footprint,
    Weight,
    device_share,
    footprint,
    kept_bytes,
    layer_kinds,
    named_bytes,
    weights,
)
from lifecycle.planning.topology import Topology
from lifecycle.training.config import TrainConfig

# The share of the peak that products reach if their time includes all other computation outside kernels. In compiled
# steps it is 0.70 (tpu7x) to 0.91 (8B on v5p).
PRODUCT_SHARE = 0.8
# Attention's backward pass in units of its forward pass: two products forward, five backward.
ATTENTION_BACKWARD = 2.5
PRODUCTS = (*SPARED_BY, "down", "router", "projection")  # weights of a layer, or prediction module, by name


@dataclass(frozen=True)
class Forecast:
    """A candidate's time by arithmetic, per device and step."""

    footprint: Footprint
    product_flops: float  # outside kernels
    kernel_flops: float  # attention's scores and the experts' grouped products
    compute_s: float
    network_s: float
    host_s: float  # waiting for the host's memory

    @property
    def step_s(self) -> float:
        """Seconds of the whole step."""
        return self.compute_s + self.network_s + self.host_s


def forecast(
    model: ModelConfig, train: TrainConfig, candidate: Candidate, topology: Topology, network: Network
) -> Forecast:
    """Memory and time of one step. Prediction modules that it does not train are left out."""
    model = train.computed(model)
    products, kernels = flops(model, train, candidate, topology.chip)
    peak = topology.chip.bf16_flops
    products_s, kernels_s = products / peak / PRODUCT_SHARE, kernels / peak / ASSUMED_SHARE
    copies_s = link_s(model, train, candidate, topology)
    return Forecast(
        footprint=footprint(model, train, candidate, topology.chip),
        product_flops=products,
        kernel_flops=kernels,
        compute_s=products_s + kernels_s,
        network_s=sum(c.runs * network.seconds(c) for c in traffic(model, train, candidate)),
        host_s=max(copies_s - products_s, copies_s * kernels_s / (products_s + kernels_s)),
    )


def flops(model: ModelConfig, train: TrainConfig, candidate: Candidate, chip: Chip) -> tuple[float, float]:
    """FLOPs per device and step in products and in kernels: forward, twice that backward, and recomputation.

    cuDNN's forward kernel runs again whatever is kept (`kernels/cudnn.py`).
    """
    c, mesh = candidate, candidate.mesh
    once, again, routed, routed_again = 0.0, 0.0, 0.0, 0.0
    for w in weights(model):
        if w.is_moe is None or w.name not in PRODUCTS:
            continue
        used = 2.0 * w.layers * w.size * _used_share(model, w)
        times = mesh.context if w.name == "kv_up" else 1  # each device expands the whole row's latents
        is_again = _runs_again(model, w.name, c)
        if w.is_routed:
            routed, routed_again = routed + used, routed_again + used * is_again
        else:
            once, again = once + used * times, again + used * times * is_again
    head = 2.0 * model.vocab_size * model.d_model * (1 + model.num_mtp_modules)
    scores = forward_flops_per_token(model, train.seq_len) - _plain_forward(model)
    products = 3 * once + again + head * (4 if c.loss_chunks > 1 else 3)
    kernels = (
        3 * routed + routed_again + scores * (1 + ATTENTION_BACKWARD + (not (chip.is_tpu and c.keeps("attention_out"))))
    )
    tokens = train.global_batch_size * train.seq_len / (axis_size(mesh, "batch") * mesh.context * mesh.tensor)
    return tokens * products, tokens * kernels


def _used_share(model: ModelConfig, weight: Weight) -> float:
    """The share of a weight that one token is multiplied by."""
    if weight.is_routed and model.moe is not None:
        return model.moe.experts_per_token / model.moe.num_experts
    return 1.0


def _runs_again(model: ModelConfig, name: str, candidate: Candidate) -> bool:
    """Whether the backward pass recomputes a product. A norm after a branch needs the branch's output."""
    if name in ("o", "down") and model.norm_position != "pre":
        return True
    return name in SPARED_BY and not candidate.keeps(*SPARED_BY[name])


def _plain_forward(model: ModelConfig) -> float:
    """FLOPs of a token's forward products, without attention's scores."""
    layers = sum(w.layers * w.size * _used_share(model, w) for w in weights(model) if w.name in PRODUCTS)
    return 2 * (layers + model.vocab_size * model.d_model * (1 + model.num_mtp_modules))


def link_s(model: ModelConfig, train: TrainConfig, candidate: Candidate, topology: Topology) -> float:
    """Seconds for which a step's copies to host memory and back occupy the link."""
    if not candidate.is_offloading:
        return 0.0
    chip, part = topology.chip, device_share(model, train, candidate)
    assert chip.host_bytes_per_s is not None, f"{chip.name}: no figure for its host's link, so nothing is offloaded"
    kept = (
        layers * kept_bytes(named_bytes(model, candidate.mesh, part, kind), candidate, "offload")
        for kind, layers in layer_kinds(model)
    )
    return 2 * candidate.grad_accum * sum(kept) / chip.host_bytes_per_s


def traffic(model: ModelConfig, train: TrainConfig, candidate: Candidate) -> Sequence[Collective]:
    """The step's large collectives."""
    mesh, part = candidate.mesh, device_share(model, train, candidate)
    rows = [
        *_of_weights(model, candidate),
        *_of_hidden_states(model, candidate, part),
        *_of_keys(model, candidate, part),
        *_of_experts(model, candidate, part),
        (
            "all-reduce",
            ("replica",),
            FLOAT_BYTES * sum(w.layers * w.size / w.axis_size(mesh) for w in weights(model)),
            1,
        ),
    ]
    return [
        Collective(kind, axes, group_size, round(size), round(runs), False, 0, (), kind, "", "", None)
        for kind, axes, size, runs in rows
        if (group_size := math.prod(getattr(mesh, axis) for axis in axes)) > 1 and runs and size >= 1
    ]


type _Row = tuple[str, tuple[str, ...], float, float]  # kind, axes, bytes per run, runs


def _of_weights(model: ModelConfig, candidate: Candidate) -> list[_Row]:
    """All-gathers of weights forward and again backward, of the head only once; reduce-scatters of their gradients.

    They run over one axis after the other: over an inner axis only the shard that the outer ones leave.
    """
    mesh, sizes = candidate.mesh, dict[tuple[str, tuple[str, ...], int], float]()
    head = "embed" if model.tie_embeddings else "head"
    for w in weights(model):
        if not (axes := w.gathered_over(mesh)) or (w.is_moe is None and w.name != head):
            continue
        gathers = 2 if w.is_moe is not None else 1 + model.num_mtp_modules
        size = COMPUTE_BYTES * w.size / w.axis_size(mesh, is_gathered=True)
        for axis in axes:
            for kind, runs in (("all-gather", gathers), ("reduce-scatter", 1 if w.is_moe is not None else gathers)):
                key = kind, (axis,), w.layers
                sizes[key] = sizes.get(key, 0.0) + runs * size
            size /= getattr(mesh, axis)
    return [(kind, axes, size, layers * candidate.grad_accum) for (kind, axes, layers), size in sizes.items()]


def _of_hidden_states(model: ModelConfig, candidate: Candidate, part: DeviceShare) -> list[_Row]:
    """Two all-gathers and two reduce-scatters per layer over `tensor`, their transposes, and those of recomputation.

    Over the data axes, an all-to-all exchanges the embedding's columns for rows, and its transpose runs backward.
    """
    lookups = 1 + model.num_mtp_modules
    runs = (model.num_layers + model.num_mtp_modules) * candidate.grad_accum
    hidden = COMPUTE_BYTES * part.tokens * model.d_model
    again = 1 if _runs_again(model, "o", candidate) else 0
    data = tuple(axis for axis in RULES["embed"] if getattr(candidate.mesh, axis) > 1)
    return [
        ("all-gather", ("tensor",), hidden, 6 * runs),
        ("reduce-scatter", ("tensor",), hidden, (4 + again) * runs),
        ("all-to-all", data, hidden, 2 * lookups * candidate.grad_accum),
    ]


def _of_keys(model: ModelConfig, candidate: Candidate, part: DeviceShare) -> list[_Row]:
    """All-gathers of the row's keys and values, or latents, over `context`, and reduce-scatters of their gradients.

    The gathers run in both passes. In a ring, keys and values are passed on, backward with their gradients in float32.
    """
    mesh, runs = candidate.mesh, (model.num_layers + model.num_mtp_modules) * candidate.grad_accum
    if model.mla is not None:
        width = model.mla.kv_lora_rank + model.mla.rope_head_dim
    else:
        width = 2 * model.num_kv_heads * model.head_dim / mesh.tensor
    own = COMPUTE_BYTES * part.tokens * width
    if model.context_attention == "ring":
        turns = 2 + FLOAT_BYTES / COMPUTE_BYTES + (not candidate.keeps("attention_out"))
        return [("collective-permute", ("context",), own * turns, mesh.context * runs)]
    row = own * mesh.context
    return [("all-gather", ("context",), row, 2 * runs), ("reduce-scatter", ("context",), row, runs)]


def _of_experts(model: ModelConfig, candidate: Candidate, part: DeviceShare) -> list[_Row]:
    """Exchanges of rows over `expert`: there and back in both passes, and there again if the rows are not kept."""
    layers = sum(number for is_moe, number in layer_kinds(model) if is_moe)
    row = COMPUTE_BYTES * model.d_model
    runs = layers * candidate.grad_accum
    again = 0 if candidate.keeps("expert_rows") else 1
    return [
        ("all-to-all", ("expert",), row * part.sent, (2 + again) * runs),
        ("all-to-all", ("expert",), row * part.received, 2 * runs),
    ]
