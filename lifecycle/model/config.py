"""What a decoder is made of. A family (Llama, Qwen, ...) is a choice of these values, not a class."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.mesh import MeshConfig, require_divides


class ModelConfig(Section):
    """A pre-norm decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    preset_folder: ClassVar[str | None] = "models"

    vocab_size: int = Field(gt=0)
    d_model: int = Field(gt=0)
    d_ff: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_seq_len: int = Field(default=2048, gt=1)
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    use_qk_norm: bool = False
    tie_embeddings: bool = False
    compute_dtype: Literal["float32", "bfloat16"] | None = None  # None: float32 on CPU, bfloat16 elsewhere

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs of dimensions")
        return self

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Raises `ConfigError` when a mesh axis does not divide the dimension it shards."""
        for logical, size, what in (
            ("embed", self.d_model, "model.d_model"),
            ("heads", self.num_heads, "model.num_heads"),
            ("kv_heads", self.num_kv_heads, "model.num_kv_heads"),
            ("mlp", self.d_ff, "model.d_ff"),
            ("vocab", self.vocab_size, "model.vocab_size"),
        ):
            require_divides(mesh, logical, size, what)

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """This config, checked against the tokenizer's vocabulary."""
        if vocab_size > self.vocab_size:
            raise ConfigError(
                f"the tokenizer has {vocab_size} ids, model.vocab_size={self.vocab_size} is too small; "
                f"set model.vocab_size={vocab_size} or more"
            )
        return self


def num_params(config: ModelConfig) -> int:
    """Parameters of the model, tied ones counted once."""
    c = config
    attention = c.d_model * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    qk_norm = 2 * c.head_dim if c.use_qk_norm else 0
    layer = attention + qk_norm + 3 * c.d_model * c.d_ff + 2 * c.d_model
    return c.num_layers * layer + c.d_model + c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)


def forward_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Matmul FLOPs of a forward pass per token; causal attention counted half: the work needed, not the square.

    Training costs three times this: the backward pass has two matmuls for each one here.
    """
    c = config
    weights = c.d_model * c.head_dim * 2 * (c.num_heads + c.num_kv_heads) + 3 * c.d_model * c.d_ff
    scores = 2 * c.num_heads * c.head_dim * seq_len / 2  # q k' and p v, over half the keys on average
    return 2 * (c.num_layers * (weights + scores) + c.d_model * c.vocab_size)
