"""The work that the model itself needs for one run of a program: tokens and FLOPs, from its config alone.

Causal attention is counted in two ways: only what a query sees (half of the square for long causal rows, the stricter
convention), and the full square (Chowdhery et al. 2022, appendix B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import block_layers, forward_flops_per_token
from lifecycle.rl.config import RolloutConfig
from lifecycle.training.config import TrainConfig


@dataclass(frozen=True)
class Work:
    """The work of one run of a program, on all devices together."""

    tokens: int
    flops: float  # causal attention counted half; only the experts that a token uses
    flops_full_attention: float
    runs: int  # runs of the program in the whole training run
    # The share of attention's square that the program's kernels compute: 0.5 if all layers are causal over whole rows
    attention_share: float = 1.0


def train_work(model: ModelConfig, train: TrainConfig, others: Sequence[ModelConfig] = ()) -> Work:
    """One train step: a forward pass and a backward pass of twice its products, or what the stage does instead; and a
    forward pass of `others`, the models that it runs beside its own."""
    tokens = train.global_batch_size * train.seq_len

    def flops(causal: bool) -> float:
        beside = sum(forward_flops_per_token(other, train.seq_len, causal) for other in others)
        return tokens * (train.flops_per_token(model, causal) + beside)

    half, full = flops(True), flops(False)
    return Work(tokens, half, full, train.steps, attention_share(train.computed(model), train.seq_len))


def scoring_work(model: ModelConfig, train: RolloutConfig) -> Work:
    """A forward pass over the rows of a step, once for each batch of rollouts."""
    tokens, model = train.global_batch_size * train.seq_len, train.computed(model)
    half, full = (tokens * forward_flops_per_token(model, train.seq_len, causal) for causal in (True, False))
    return Work(tokens, half, full, train.steps // train.num_iterations, attention_share(model, train.seq_len))


def prefill_work(model: ModelConfig, max_seq_len: int, num_chunks: int) -> Work:
    """The longest chunk of each of `num_chunks` prompts, halfway through a context of `max_seq_len`.

    The head runs for their last tokens only.
    """
    from lifecycle.inference.chunks import BUCKETS

    model = model.trunk
    tokens = num_chunks * BUCKETS[-1]
    spared = 2 * (tokens - num_chunks) * model.d_model * model.vocab_size
    half, full = (tokens * forward_flops_per_token(model, max_seq_len, causal) - spared for causal in (True, False))
    return Work(tokens, half, full, runs=1)


def decode_work(model: ModelConfig, num_slots: int, max_seq_len: int) -> Work:
    """One token for each of `num_slots`, on average over a context of `max_seq_len`.

    A token takes two FLOPs for each parameter that it uses, plus attention.
    """
    model = model.trunk
    half, full = (num_slots * forward_flops_per_token(model, max_seq_len, causal) for causal in (True, False))
    return Work(num_slots, half, full, runs=1)


def attention_share(model: ModelConfig, seq_len: int) -> float:
    """The share of attention's square that queries see, over all layers: less than half if some have a window."""
    half, full = (forward_flops_per_token(model, seq_len, causal) for causal in (True, False))
    square = 2 * len(block_layers(model)) * model.num_heads * (model.head_dim + model.v_head_dim) * seq_len
    return 1 - (full - half) / square
