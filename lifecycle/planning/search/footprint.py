"""The memory of a candidate, by arithmetic.

Bytes are per device, for the step as it is implemented. The counts come from the model's abstract parameters and their
logical axes: state and gradients sharded, a layer's weights gathered over their data axes before use; a row's positions
sharded over `tensor` between products; keys and values gathered over `context` (or passed around a ring); the experts'
rows with their buffers. The result prunes candidates; the compiler decides. Its error against compiled peaks:
`tests/planning/search/test_planning_footprint.py`. Source of the counts: Korthikanti et al. 2022, "Reducing Activation
Recomputation", sections 4 and 5; Rajbhandari et al. 2020, "ZeRO", section 5.
"""

import math
from dataclasses import dataclass
from functools import cache

import jax

from lifecycle.kernels.vocabulary import BLOCK
from lifecycle.model.config import ModelConfig, Remat, RematName
from lifecycle.model.counts import block_layers
from lifecycle.model.dispatch import buffer_room
from lifecycle.model.gathering import GATHERED
from lifecycle.model.params import parameters
from lifecycle.model.stacks import MODULES
from lifecycle.parallel.axes import RULES, MeshConfig
from lifecycle.planning.chips import Chip
from lifecycle.planning.search.candidates import Candidate, axis_size
from lifecycle.training.config import TrainConfig

COMPUTE_BYTES = 2  # bfloat16
FLOAT_BYTES = 4
# Copies that a layer's backward pass holds at once, chosen to match the peaks of compiled steps. Weights: those in use,
# the next layer's, and gradients not yet scattered. Feed-forward: the gate and up halves, their product, and the
# gradients of the three. Hidden states: those around branches and norms.
WEIGHT_COPIES, FEED_FORWARD_COPIES, HIDDEN_COPIES = 3, 6, 8
ROWS_COPIES = 2  # of the experts' rows, at either end of their exchange
# Names that, if kept, spare the recomputation of a product, by the name of its weight. `down` and the router have none:
# nothing after `down` needs recomputing, and the router is small.
SPARED_BY: dict[str, tuple[RematName, ...]] = {
    "q": ("q",), "k": ("k",), "v": ("v",), "o": ("middle",), "q_down": ("q_latent",), "q_up": ("q",),
    "kv_down": ("kv_latent",), "kv_up": ("k", "v"), "gate": ("gate",), "up": ("up",),
}  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """A candidate's memory, per device."""

    state_bytes: float
    saved_bytes: float
    work_bytes: float  # accumulated gradients + max(loss, gradients + a layer's backward pass)

    @property
    def total_bytes(self) -> float:
        """The peak of the step."""
        return self.state_bytes + self.saved_bytes + self.work_bytes


@dataclass(frozen=True)
class Weight:
    """One parameter of a stack of equal layers, or of the trunk (`is_moe` is `None`)."""

    name: str
    is_moe: bool | None
    layers: int
    size: int  # elements in one layer, unsharded
    axes: tuple[str | None, ...]

    def axis_size(self, mesh: MeshConfig, is_gathered: bool = False) -> int:
        """The number of devices that it is sharded over, as stored or as gathered for use."""
        names = [name for name in self.axes if name is not None and not (is_gathered and name in GATHERED)]
        return math.prod(axis_size(mesh, name) for name in names)

    def gathered_over(self, mesh: MeshConfig) -> tuple[str, ...]:
        """The mesh axes over which it is gathered before use."""
        axes = (axis for name in self.axes if name in GATHERED for axis in RULES[name])
        return tuple(axis for axis in axes if getattr(mesh, axis) > 1)

    @property
    def is_routed(self) -> bool:
        """Whether it belongs to the experts among which tokens are routed."""
        return "experts" in self.axes


def weights(model: ModelConfig) -> tuple[Weight, ...]:
    """All parameters, by stack and by array."""
    return _weights(model)


@cache
def _weights(model: ModelConfig) -> tuple[Weight, ...]:
    """Cached `weights`. Layers of a stack have equal weights; a stack's name starts with its first layer's number."""
    weights = []
    for path, declared in jax.tree_util.tree_leaves_with_path(parameters(model)):
        keys, (first, *rest) = [entry.key for entry in path], declared.shape
        if declared.is_stacked:
            layer = model.num_layers - 1 if keys[0] == MODULES else int(keys[1].partition("+")[0])
            is_moe = model.is_moe(layer)
            weights.append(Weight(keys[-1], is_moe, first, math.prod(rest), declared.axes[1:]))
        else:
            weights.append(Weight(keys[-1], None, 1, math.prod(declared.shape), declared.axes))
    return tuple(weights)


@dataclass(frozen=True)
class DeviceShare:
    """A device's share of a micro-batch."""

    tokens: int  # all positions of its shard over `context`
    sent: int  # rows for experts, one per token and chosen expert
    received: int  # rows for which its own experts have room


def device_share(model: ModelConfig, train: TrainConfig, candidate: Candidate) -> DeviceShare:
    """How many tokens and expert rows a device has at once."""
    mesh, moe = candidate.mesh, model.moe
    tokens = train.global_batch_size // candidate.grad_accum // axis_size(mesh, "batch") * train.seq_len // mesh.context
    if moe is None:
        return DeviceShare(tokens, 0, 0)
    sent = tokens * moe.experts_per_token
    here = moe.num_experts // mesh.expert
    received = buffer_room(tokens, moe.experts_per_token, here, mesh.expert).first if mesh.expert > 1 else sent
    return DeviceShare(tokens, sent, received)


def named_bytes(model: ModelConfig, mesh: MeshConfig, part: DeviceShare, is_moe: bool) -> dict[RematName, float]:
    """Bytes of a layer's arrays that can be kept, per device."""
    tokens = part.tokens / mesh.tensor
    row = tokens * (mesh.context if model.mla is not None else 1)  # latents are gathered, then expanded
    keys, moe = model.num_kv_heads * model.head_dim, model.moe
    half, rows = tokens * model.d_ff, 0
    if is_moe and moe is not None:
        half = moe.d_ff * (part.received / mesh.tensor + tokens * moe.num_shared_experts)
        rows = part.received if mesh.expert > 1 else 0  # named on the receiving device
    elements: dict[RematName, float] = {
        "input": tokens * model.d_model,
        "q": tokens * model.num_heads * model.head_dim,
        "k": row * keys,
        "v": row * model.num_kv_heads * model.v_head_dim,
        "attention_out": tokens * model.num_heads * (model.v_head_dim + FLOAT_BYTES / COMPUTE_BYTES),  # log-sum-exp
        "middle": tokens * model.d_model,
        "expert_rows": rows * model.d_model,
        "gate": half,
        "up": half,
    }
    if model.mla is not None:
        elements["q_latent"] = tokens * (model.mla.q_lora_rank or 0)
        elements["kv_latent"] = tokens * (model.mla.kv_lora_rank + model.mla.rope_head_dim)
    return {name: COMPUTE_BYTES * size for name, size in elements.items()}


def footprint(model: ModelConfig, train: TrainConfig, candidate: Candidate, chip: Chip) -> Footprint:
    """The parts of the peak, which occurs in the loss or in a layer's backward pass with all gradients held."""
    mesh, part = candidate.mesh, device_share(model, train, candidate)
    held = sum(w.layers * w.size / w.axis_size(mesh) for w in weights(model))
    gradients = FLOAT_BYTES * held
    kinds = layer_kinds(model)
    saved = sum(layers * kept_bytes(named_bytes(model, mesh, part, kind), candidate, "save") for kind, layers in kinds)
    layer = max(_layer_bytes(model, candidate, part, kind) for kind, _ in kinds)
    summed = gradients if candidate.grad_accum > 1 else 0.0  # accumulated over earlier micro-batches
    served = FLOAT_BYTES * held if train.weights is not None else 0.0  # the weights as they will be served
    return Footprint(
        state_bytes=(train.optimizer.bytes_per_parameter + train.copy_bytes) * held + served,
        saved_bytes=saved,
        work_bytes=summed
        + max(_loss_bytes(model, candidate, part), gradients + layer)
        + _mask_bytes(train, part, chip),
    )


def _mask_bytes(train: TrainConfig, part: DeviceShare, chip: Chip) -> float:
    """Bytes of the mask of segments, which cuDNN takes as a bias `[rows, T, S]` that all heads share
    (`kernels/cudnn.py`); the TPU's kernels make it tile by tile."""
    return 0.0 if chip.is_tpu else COMPUTE_BYTES * part.tokens * float(train.seq_len)


def layer_kinds(model: ModelConfig) -> list[tuple[bool, int]]:
    """The kinds of layers, prediction modules among them, as pairs: (has experts, number of such layers)."""
    layers = block_layers(model)
    experts = sum(map(model.is_moe, layers))
    return [(kind, number) for kind, number in ((False, len(layers) - experts), (True, experts)) if number]


def kept_bytes(sizes: dict[RematName, float], candidate: Candidate, how: str) -> float:
    """Bytes of a layer that are kept `how`: "save" on the device, "offload" in the host's memory.

    The input is saved unless the policy says otherwise.
    """
    remat: Remat = {"input": "save", **candidate.remat}
    return sum(sizes.get(name, 0.0) for name, what in remat.items() if what == how)


def _layer_bytes(model: ModelConfig, candidate: Candidate, part: DeviceShare, is_moe: bool) -> float:
    """Bytes that a layer's backward pass needs in addition to the arrays kept for it."""
    mesh, sizes = candidate.mesh, named_bytes(model, candidate.mesh, part, is_moe)
    of_kind = sum(w.layers * w.size / w.axis_size(mesh, is_gathered=True) for w in weights(model) if w.is_moe is is_moe)
    gathered = COMPUTE_BYTES * of_kind / dict(layer_kinds(model))[is_moe]  # one layer's
    seen = 2 if model.context_attention == "ring" else 1 if model.mla is not None else mesh.context
    keys = sizes["k"] + sizes["v"]
    attention = 2 * (sizes["q"] + sizes["attention_out"] + keys * (seen if mesh.context > 1 else 1))
    hidden = COMPUTE_BYTES * part.tokens * model.d_model
    around = hidden * (HIDDEN_COPIES / mesh.tensor + (3 if mesh.tensor > 1 else 0))  # 3 copies have all positions
    rows = COMPUTE_BYTES * model.d_model * (part.sent + part.received) * ROWS_COPIES if is_moe else 0
    in_flight = 2 * kept_bytes(sizes, candidate, "offload")
    branch = max(FEED_FORWARD_COPIES * sizes["gate"] + rows, attention)
    return WEIGHT_COPIES * gathered + branch + around + in_flight


def _loss_bytes(model: ModelConfig, candidate: Candidate, part: DeviceShare) -> float:
    """Bytes of the head and its gradient, and of a block's logits and their gradient.

    In chunks of the vocabulary, a block has as many more positions.
    """
    vocab = model.vocab_size / candidate.mesh.tensor / candidate.loss_chunks
    head, hidden = vocab * model.d_model, part.tokens * model.d_model
    logits = (FLOAT_BYTES + COMPUTE_BYTES) * vocab
    if candidate.loss_chunks > 1:
        waiting = candidate.loss_chunks if axis_size(candidate.mesh, "embed") > 1 else 0  # all of a gathered head
        heads = (waiting + 2) * COMPUTE_BYTES * head
        block = min(BLOCK["bfloat16"] * candidate.loss_chunks, part.tokens)
        return block * logits + heads + (2 * COMPUTE_BYTES + FLOAT_BYTES) * hidden
    block = min(BLOCK["bfloat16"], part.tokens)
    return block * logits + (COMPUTE_BYTES + FLOAT_BYTES) * head + 2 * COMPUTE_BYTES * hidden
