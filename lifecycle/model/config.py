"""The configuration of a decoder. A family (Llama, Gemma, DeepSeek, ...) is a choice of these values, not a class."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.numbers import Size
from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.dial import DEPTH, fill_sizes
from lifecycle.parallel.axes import MeshConfig, require_divides

LayerKind = Literal["global", "local", "nope"]  # full causal attention; a window; full, without RoPE

# A layer's intermediate arrays that can be kept for its backward pass, in the order of computation: its input (saved
# unless it is offloaded: nothing can be recomputed without it); queries, keys and values (as projected; in latent
# attention, as attention takes them); attention's output, with its log-sum-exp; the sum after the attention branch; the
# two halves of a gated feed-forward. Latent attention also has its latents, and experts have the rows they received.
RematName = Literal[
    "input", "q_latent", "kv_latent", "q", "k", "v", "attention_out", "middle", "expert_rows", "gate", "up"
]  # fmt: skip
Remat = dict[RematName, Literal["save", "offload", "recompute"]]

WeightFormat = Literal["int8", "int4", "fp8"]  # of the matrices in inference, if not the compute dtype
CacheFormat = Literal["int8", "fp8"]  # of the KV cache, if not the compute dtype
Precision = Literal["int8", "fp8"]  # of the layers' matrix products in training, if not the compute dtype
ReferenceCopy = Literal["fixed", "moving"]  # a second copy of the weights in a preference stage's state


class RopeScaling(Section):
    """How trained rotary frequencies are stretched to longer sequences.

    `linear` divides them by `factor` (Chen et al. 2023); `llama3` only the slow ones, with a ramp between two
    wavelengths (Llama 3.1's published code); `yarn` ramps between two numbers of rotations and scales the attention
    (Peng et al. 2023, sections 3.2 and 3.4; `mscale` as in DeepSeek-V2, section 3.1.4).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float = Field(gt=0)
    original_max_seq_len: int = Field(default=8192, gt=0)
    low_freq_factor: float = Field(default=1.0, gt=0)  # llama3: waves longer than original / this are fully scaled
    high_freq_factor: float = Field(default=4.0, gt=0)  # llama3: waves shorter than original / this stay
    beta_fast: float = Field(default=32.0, gt=0)  # yarn: more rotations than this over the original length stay
    beta_slow: float = Field(default=1.0, gt=0)  # yarn: fewer than this are fully scaled
    mscale: float | None = None  # yarn: its scale, divided by the next one's, scales cosines and sines
    mscale_all_dim: float | None = None  # yarn: its scale, squared, multiplies the scores (MLA only)
    truncate: bool = True  # yarn: the ramp's ends are rounded outwards to integers

    @model_validator(mode="after")
    def _check(self) -> "RopeScaling":
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be below high_freq_factor={self.high_freq_factor}"
            )
        return self


class MlaConfig(Section):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values through one latent of `kv_lora_rank`,
    and a rotary key of `rope_head_dim` that all heads share. `head_dim` is `nope_head_dim + rope_head_dim`."""

    q_lora_rank: int | None = Field(default=None, gt=0)  # None: queries straight from d_model
    kv_lora_rank: int = Field(gt=0)
    nope_head_dim: int = Field(gt=0)
    rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)


class MoeConfig(Section):
    """A mixture of experts: each token uses a few of them, and no token is dropped."""

    num_experts: int = Field(gt=1)
    experts_per_token: int = Field(gt=0)
    d_ff: int = Field(gt=0)  # of one expert
    num_shared_experts: int = Field(default=0, ge=0)  # used by every token: one feed-forward of this many times d_ff
    first_dense_layers: int = Field(default=0, ge=0)  # these first layers have a dense feed-forward of model.d_ff
    score: Literal["softmax", "sigmoid"] = "softmax"
    use_normalised_weights: bool = True  # the chosen experts' weights sum to one
    routed_scale: float = Field(default=1.0, gt=0)
    # Choose among the experts of the best groups only (DeepSeek-V3, section 2.1.2); 1 and 1: no groups.
    num_groups: int = Field(default=1, gt=0)
    groups_per_token: int = Field(default=1, gt=0)
    use_selection_bias: bool = False  # added to the scores to choose experts, not to weight them (DeepSeek-V3, eq. 16)
    use_bias: bool = False  # biases of the router and of the experts (gpt-oss)
    balance_weight: float = Field(default=0.0, ge=0)  # load-balancing loss (Switch Transformers, equation 4)
    z_weight: float = Field(default=0.0, ge=0)  # router z-loss (ST-MoE, equation 5)
    bias_rate: float = Field(default=0.0, ge=0)  # change of the selection bias per step, towards an even load

    @model_validator(mode="after")
    def _check(self) -> "MoeConfig":
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}")
        if self.num_experts % self.num_groups or self.groups_per_token > self.num_groups:
            raise ValueError(
                f"num_groups={self.num_groups} must divide num_experts={self.num_experts} and be at least "
                f"groups_per_token={self.groups_per_token}"
            )
        if self.bias_rate and not self.use_selection_bias:
            raise ValueError("bias_rate changes the selection bias; set use_selection_bias=true")
        return self


class DrafterConfig(Section):
    """A head that drafts tokens for a frozen model (Li et al. 2025, "EAGLE-3"): `model/drafter.py`."""

    vocab_size: int | None = Field(default=None, gt=0)  # of the drafts; None: the model's
    d_ff: int | None = Field(default=None, gt=0)  # None: the model's
    # The layers whose inputs it reads: low, middle, high. None: as published ones have them, the third, the middle one
    # and the last but two; in a model of less than seven layers the first, the middle one and the last.
    layers: tuple[int, int, int] | None = None

    @field_validator("layers")
    @classmethod
    def _ascend(cls, layers: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if layers is not None and not 0 <= layers[0] < layers[1] < layers[2]:
            raise ValueError(f"{list(layers)}: expected three numbers of layers, each above the one before")
        return layers


class ModelConfig(Section):
    """A decoder: RMSNorm, RoPE, grouped-query or latent attention, gated feed-forward or experts.

    Read from settings with a `depth`, the sizes that they leave out follow from it (`model/dial.py`); the config itself
    has plain sizes only.
    """

    preset_folder: ClassVar[str | None] = "models"
    # What decides no weights: it changes the order of float sums only; it bounds the rows that are measured, asked or
    # answered (positions have no parameters); it names the layout of the exported weights.
    HOW_COMPUTED: ClassVar[frozenset[str]] = frozenset({"context_attention"})
    HOW_MEASURED: ClassVar[frozenset[str]] = frozenset({"max_seq_len"})
    HOW: ClassVar[frozenset[str]] = HOW_COMPUTED | HOW_MEASURED | {"family"}

    family: str = "llama"  # the published layout in which weights are read and written (weights/families)
    vocab_size: int = Field(gt=0)
    d_model: int = Field(gt=0)
    d_ff: int = Field(gt=0)
    num_layers: int = Field(gt=0, le=4096)  # far above any model; a corrupt file must not ask for a billion names
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_seq_len: Size = Field(default=2048, gt=1)

    # The layers' kinds, repeated over the depth; a local layer's query sees its last `window` keys, itself included.
    layer_pattern: tuple[LayerKind, ...] = Field(default=("global",), min_length=1)
    window: int | None = Field(default=None, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = Field(default=None, gt=0)  # of local layers; not scaled

    norm_eps: float = Field(default=1e-6, gt=0)
    norm_position: Literal["pre", "post", "sandwich"] = "pre"  # before a branch, after it (before the sum), or both
    norm_offset: float = 0.0  # added to a norm's learned scale (Gemma: 1)
    qk_norm: Literal["none", "head", "projection"] = "none"  # per head, or over all heads' dimensions at once
    attention_bias: Literal["none", "qkv", "qkvo"] = "none"
    attention_scale: float | None = Field(default=None, gt=0)  # of the scores; None: head_dim ** -0.5
    attention_soft_cap: float | None = Field(default=None, gt=0)  # cap * tanh(scores / cap)
    # Over a context axis: every device gathers the row's keys and values, or they are passed around a ring.
    context_attention: Literal["gather", "ring"] = "gather"
    use_sinks: bool = False  # a learned logit per head that takes part in the softmax (gpt-oss)
    mla: MlaConfig | None = None

    activation: Literal["silu", "gelu", "clamped"] = "silu"  # of the gate; gelu: tanh form; clamped: gpt-oss
    moe: MoeConfig | None = None
    # Modules behind the last layer that predict further tokens (`model/mtp.py`). Training stages with `mtp_weight`
    # train them; decoding does not use them.
    num_mtp_modules: int = Field(default=0, ge=0, le=16)
    # Set by a training stage with the objective `eagle`, never in a run's file: the other stages are without it.
    drafter: DrafterConfig | None = None
    # Set by a training stage with an `adapter`, likewise.
    adapter: AdapterConfig | None = None
    # A vector that makes a number of each hidden state: a reward. Set by a stage that trains one, likewise.
    has_score: bool = False
    # A second copy of the weights, which a preference stage compares itself with in its steps: fixed, in the compute
    # dtype, or moving, in float32. Set for the steps of such a stage alone, likewise.
    reference: ReferenceCopy | None = None

    use_embed_scale: bool = False  # embeddings times sqrt(d_model) (Gemma)
    logits_soft_cap: float | None = Field(default=None, gt=0)
    tie_embeddings: bool = False
    compute_dtype: Literal["float32", "bfloat16"] | None = None  # None: float32 on CPU, bfloat16 elsewhere

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or DEPTH not in tree:
            return tree
        filled = {known.setting: known.value for known in fill_sizes(tree)}
        return {name: value for name, value in tree.items() if name != DEPTH} | filled

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        forms = super().__get_pydantic_json_schema__(schema, handler)["anyOf"]
        own = handler.resolve_ref_schema(forms[-1])
        sized = {name: field for name, field in own["properties"].items() if name != "num_layers"}
        depth = {"type": "integer", "description": "layers; decides the sizes that are left out", "minimum": 1}
        return {"anyOf": [*forms, own | {"properties": sized | {DEPTH: depth}, "required": [DEPTH, "vocab_size"]}]}

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.rope_dim % 2:
            raise ValueError(f"head_dim={self.rope_dim} is odd; RoPE rotates pairs of dimensions")
        if ("local" in self.layer_pattern) != (self.window is not None):
            raise ValueError("a local layer in layer_pattern needs window=..., and window needs a local layer")
        if self.local_rope_theta is not None and "local" not in self.layer_pattern:
            raise ValueError("local_rope_theta needs a local layer in layer_pattern")
        if self.mla is not None:
            self._check_mla(self.mla)
        if self.moe is not None and self.moe.first_dense_layers >= self.num_layers:
            raise ValueError(
                f"moe.first_dense_layers={self.moe.first_dense_layers} must be below num_layers={self.num_layers}"
            )
        return self

    def _check_mla(self, mla: MlaConfig) -> None:
        if self.head_dim != mla.nope_head_dim + mla.rope_head_dim:
            raise ValueError(
                f"head_dim={self.head_dim} is not mla.nope_head_dim + mla.rope_head_dim="
                f"{mla.nope_head_dim + mla.rope_head_dim}"
            )
        if self.num_kv_heads != self.num_heads:
            raise ValueError("with mla every head has its own keys: set num_kv_heads to num_heads")
        if self.qk_norm != "none" or self.attention_bias != "none" or self.use_sinks:
            raise ValueError("mla does not support qk_norm, attention_bias or use_sinks; leave them out")
        if self.context_attention == "ring":
            raise ValueError("mla gathers the row's latents; set context_attention=gather")

    @property
    def trunk(self) -> "ModelConfig":
        """This model without prediction modules, drafter, adapter, score and reference."""
        return self.target.model_copy(update={"num_mtp_modules": 0}) if self.num_mtp_modules else self.target

    @property
    def target(self) -> "ModelConfig":
        """This model without what a training stage adds to it: a drafter, an adapter, a score, a reference."""
        plain = {"drafter": None, "adapter": None, "has_score": False, "reference": None}
        is_plain = all(getattr(self, name) == value for name, value in plain.items())
        return self if is_plain else self.model_copy(update=plain)

    @property
    def drafter_layers(self) -> tuple[int, int, int]:
        """The layers whose inputs the drafter reads."""
        assert self.drafter is not None
        middle, last = self.num_layers // 2, self.num_layers - 1
        return self.drafter.layers or ((2, middle, last - 2) if self.num_layers >= 7 else (0, middle, last))

    @property
    def rope_dim(self) -> int:
        """The number of rotated dimensions per head."""
        return self.head_dim if self.mla is None else self.mla.rope_head_dim

    @property
    def v_head_dim(self) -> int:
        """Dimensions of a head's values."""
        return self.head_dim if self.mla is None else self.mla.v_head_dim

    @property
    def bias_rate(self) -> float:
        """Change of the selection biases per step; 0 without experts."""
        return self.moe.bias_rate if self.moe is not None else 0.0

    def remat_names(self, mesh: MeshConfig) -> tuple[RematName, ...]:
        """The `RematName`s of this model's layers on `mesh`; `expert_rows` exists only if experts are sharded."""
        absent: set[RematName] = set()
        if self.moe is None or mesh.expert == 1:
            absent |= {"expert_rows"}
        if self.mla is None:
            absent |= {"q_latent", "kv_latent"}
        elif self.mla.q_lora_rank is None:
            absent |= {"q_latent"}
        return tuple(name for name in get_args(RematName) if name not in absent)

    def kind(self, layer: int) -> LayerKind:
        """The kind of a layer, by its number."""
        return self.layer_pattern[layer % len(self.layer_pattern)]

    def is_moe(self, layer: int) -> bool:
        """Whether a layer has experts, by its number."""
        return self.moe is not None and layer >= self.moe.first_dense_layers

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Raises `ConfigError` if a mesh axis does not divide the dimension it shards."""
        sizes: list[tuple[str, int, str]] = [
            ("embed", self.d_model, "model.d_model"),
            ("heads", self.num_heads, "model.num_heads"),
            ("vocab", self.vocab_size, "model.vocab_size"),
        ]
        if self.mla is None:
            sizes.append(("kv_heads", self.num_kv_heads, "model.num_kv_heads"))
        if self.moe is None or self.moe.first_dense_layers:
            sizes.append(("mlp", self.d_ff, "model.d_ff"))
        if self.moe is not None:
            sizes.append(("experts", self.moe.num_experts, "model.moe.num_experts"))
            sizes.append(("mlp", self.moe.d_ff, "model.moe.d_ff"))
        if self.drafter is not None and self.drafter.vocab_size is not None:
            sizes.append(("vocab", self.drafter.vocab_size, "draft_vocab"))
        if self.drafter is not None and self.drafter.d_ff is not None:
            sizes.append(("mlp", self.drafter.d_ff, "d_ff"))
        if self.mla is not None:
            sizes.append(("embed", self.mla.kv_lora_rank, "model.mla.kv_lora_rank"))
            sizes += [("embed", self.mla.q_lora_rank, "model.mla.q_lora_rank")] if self.mla.q_lora_rank else []
        for logical, size, what in sizes:
            require_divides(mesh, logical, size, what)
        self._check_stages(mesh.stage)

    def _check_stages(self, stages: int) -> None:
        """Raises `ConfigError` unless each pipeline stage gets a whole number of periods of identical layers."""
        period = len(self.layer_pattern) if len(set(self.layer_pattern)) > 1 else 1
        is_mixed = self.moe is not None and self.moe.first_dense_layers > 0
        if stages > 1 and (is_mixed or self.num_layers % (period * stages)):
            fitting = [n for n in range(1, stages) if not is_mixed and self.num_layers % (period * n) == 0]
            raise ConfigError(
                f"mesh.stage={stages}: each stage takes the same number of whole periods of layer_pattern ({period} "
                f"layers), and no dense layers before experts; model.num_layers={self.num_layers}. "
                f"The largest that fits: mesh.stage={max(fitting, default=1)}"
            )

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """This config, checked against the tokenizer's vocabulary."""
        if vocab_size > self.vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} ids, model.vocab_size={self.vocab_size} is too small; "
                f"set model.vocab_size={vocab_size} or more"
            )
        return self
