"""How many parameters a decoder has and how many FLOPs a token takes, from its config alone."""

from lifecycle.model.config import ModelConfig


def num_params(config: ModelConfig) -> int:
    """The number of parameters, tied ones counted once, selection biases not at all (no gradient trains them).
    Prediction modules are counted, and so is a drafter, but for its copy of the head's rows."""
    c = config
    attention = _attention_matrices(c) + _attention_vectors(c)
    norms = (4 if c.norm_position == "sandwich" else 2) * c.d_model
    dense, sparse = 3 * c.d_model * c.d_ff, 0
    if c.moe is not None:
        m = c.moe
        sparse = c.d_model * m.num_experts + 3 * c.d_model * m.d_ff * (m.num_experts + m.num_shared_experts)
        sparse += m.num_experts * (1 + 2 * m.d_ff + c.d_model) if m.use_bias else 0
    layers = block_layers(c)
    feed_forward = sum(sparse if c.is_moe(layer) else dense for layer in layers)
    tables = c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)
    modules = c.num_mtp_modules * (_projection(c) + 3 * c.d_model)
    added = (0 if c.drafter is None else _drafter_matrices(c) + 4 * c.d_model) + num_adapter_params(c)
    added += c.d_model if c.has_score else 0
    return len(layers) * (attention + norms) + feed_forward + c.d_model + tables + modules + added


def num_adapter_params(config: ModelConfig) -> int:
    """The number of parameters of the adapter that a stage trains; 0 without one. Prediction modules have none."""
    adapter = config.adapter
    if adapter is None:
        return 0
    total = 0
    for layer in range(config.num_layers):
        for name, (rows, columns) in adaptable_shapes(config, layer).items():
            if adapter.targets is None or name in adapter.targets:
                total += adapter.rank * (rows + columns) + (columns if adapter.kind == "dora" else 0)
    return total


def adaptable_shapes(c: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """The shapes of a layer's matrices that an adapter can be beside, by the last part of their names."""
    queries, m = c.num_heads * c.head_dim, c.mla
    shapes: dict[str, tuple[int, int]] = {}
    if m is None:
        keys = c.num_kv_heads * c.head_dim
        shapes |= {"q": (c.d_model, queries), "k": (c.d_model, keys), "v": (c.d_model, keys), "o": (queries, c.d_model)}
    else:
        down = c.d_model if m.q_lora_rank is None else m.q_lora_rank
        if m.q_lora_rank is not None:
            shapes["q_down"] = c.d_model, m.q_lora_rank
        shapes |= {"q" if m.q_lora_rank is None else "q_up": (down, queries)}
        shapes |= {
            "kv_down": (c.d_model, m.kv_lora_rank + m.rope_head_dim),
            "o": (c.num_heads * m.v_head_dim, c.d_model),
        }
    d_ff = c.d_ff if c.moe is None or not c.is_moe(layer) else c.moe.num_shared_experts * c.moe.d_ff
    if d_ff:
        shapes |= {"gate": (c.d_model, d_ff), "up": (c.d_model, d_ff), "down": (d_ff, c.d_model)}
    return shapes


def block_layers(config: ModelConfig) -> list[int]:
    """The layer's number for each block of the model; that of a prediction module is like the last layer's."""
    return [*range(config.num_layers), *[config.num_layers - 1] * config.num_mtp_modules]


def drafter_flops_per_token(config: ModelConfig) -> float:
    """Matmul FLOPs of one step of a model's drafter, without attention's scores."""
    assert config.drafter is not None
    return 2 * (_drafter_matrices(config) + config.d_model * (config.drafter.vocab_size or config.vocab_size))


def _drafter_matrices(c: ModelConfig) -> int:
    """Elements of a drafter's matrices (`model/drafter.py`): attention's inputs are twice as wide as its output."""
    assert c.drafter is not None
    attention = c.d_model * c.head_dim * (3 * c.num_heads + 4 * c.num_kv_heads)
    return 3 * c.d_model**2 + attention + 3 * c.d_model * (c.drafter.d_ff or c.d_ff)


def _projection(c: ModelConfig) -> int:
    """Elements of a prediction module's projection."""
    return 2 * c.d_model**2


def num_active_params(config: ModelConfig) -> int:
    """The number of parameters that one token uses: of the experts, only the chosen and the shared ones, and no
    prediction module."""
    config = config.trunk
    if config.moe is None:
        return num_params(config)
    m = config.moe
    idle = (m.num_experts - m.experts_per_token) * 3 * config.d_model * m.d_ff
    if m.use_bias:
        idle += (m.num_experts - m.experts_per_token) * (2 * m.d_ff + config.d_model)
    return num_params(config) - idle * (config.num_layers - m.first_dense_layers)


def _attention_matrices(c: ModelConfig) -> int:
    """Elements of one layer's attention projections."""
    if c.mla is None:
        return c.d_model * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    m = c.mla
    queries = c.num_heads * c.head_dim
    q = c.d_model * queries if m.q_lora_rank is None else m.q_lora_rank * (c.d_model + queries)
    kv = c.d_model * (m.kv_lora_rank + m.rope_head_dim)
    kv += m.kv_lora_rank * c.num_heads * (m.nope_head_dim + m.v_head_dim)
    return q + kv + c.num_heads * m.v_head_dim * c.d_model


def _attention_vectors(c: ModelConfig) -> int:
    """Norm scales, biases and sinks of one layer's attention."""
    if c.mla is not None:
        return c.mla.kv_lora_rank + (c.mla.q_lora_rank or 0)
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    norm = {"none": 0, "head": 2 * c.head_dim, "projection": queries + keys}[c.qk_norm]
    bias = {"none": 0, "qkv": queries + 2 * keys, "qkvo": queries + 2 * keys + c.d_model}[c.attention_bias]
    return norm + bias + (c.num_heads if c.use_sinks else 0)


def forward_flops_per_token(config: ModelConfig, seq_len: int, count_causal_half: bool = True) -> float:
    """Matmul FLOPs of a forward pass per token, counting only the experts that a token uses; with those of prediction
    modules, which run in training only: leave them out with `config.trunk`.

    Causal attention counts half of the square, and a window only the keys it sees: the work that is needed. With
    `count_causal_half=False`, every key counts, also outside a window. Training costs three times this: the backward
    pass has two matmuls for each one here.
    """
    c = config
    layers = block_layers(c)
    weights = len(layers) * _attention_matrices(c) + c.num_mtp_modules * _projection(c)
    for layer in layers:
        if c.moe is not None and c.is_moe(layer):
            used = c.moe.experts_per_token + c.moe.num_shared_experts
            weights += c.d_model * (c.moe.num_experts + 3 * c.moe.d_ff * used)
        else:
            weights += 3 * c.d_model * c.d_ff
    keys = sum(_keys_seen(c, layer, seq_len) if count_causal_half else seq_len for layer in layers)
    scores = c.num_heads * (c.head_dim + c.v_head_dim) * keys  # q k' and p v
    return 2 * (weights + scores + (1 + c.num_mtp_modules) * c.d_model * c.vocab_size)


def _keys_seen(c: ModelConfig, layer: int, seq_len: int) -> float:
    """The number of keys that a query sees, averaged over a sequence."""
    if c.window is None or c.kind(layer) != "local" or c.window >= seq_len:
        return seq_len / 2
    return c.window - c.window**2 / (2 * seq_len)
