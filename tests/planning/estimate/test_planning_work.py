"""What a model itself needs for a step, a chunk of a prompt and a token."""

import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.planning.estimate.work import attention_share, decode_work, prefill_work, train_work
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.optimizer_config import OptimizerConfig

LLAMA_8B = ModelConfig(
    vocab_size=128256, d_model=4096, d_ff=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    max_seq_len=8192,
)  # fmt: skip
TRAIN = NextTokenConfig(
    steps=1000, seq_len=8192, global_batch_size=128, optimizer=OptimizerConfig(name="adamw"), remat={}
)


def test_a_models_work_is_three_forward_passes_and_causal_attention_is_half() -> None:
    work = train_work(LLAMA_8B, TRAIN)
    assert work.tokens == 128 * 8192
    # 6 FLOPs per parameter that multiplies and token, and 6 * layers * positions * width for half of attention
    multiplied = num_params(LLAMA_8B) - 128256 * 4096 - (2 * 32 + 1) * 4096
    assert work.flops == pytest.approx(work.tokens * (6 * multiplied + 6 * 32 * 8192 * 4096), rel=1e-12)
    assert work.flops_full_attention - work.flops == pytest.approx(work.tokens * 6 * 32 * 8192 * 4096, rel=1e-9)
    assert attention_share(LLAMA_8B, 8192) == pytest.approx(0.5)
    local = LLAMA_8B.model_copy(update={"layer_pattern": ("local", "global"), "window": 1024})
    assert 0.25 < attention_share(local, 8192) < 0.35


def test_the_works_of_prefill_and_decode_are_the_parameters_that_a_token_uses_and_attention() -> None:
    model = ModelConfig(
        vocab_size=1000, d_model=64, d_ff=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_seq_len=512
    )
    layer = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 128
    seen = 2 * 4 * (16 + 16) * 512  # layers, heads, both products, positions
    decode = decode_work(model, num_slots=8, max_seq_len=512)
    assert decode.tokens == 8
    assert decode.flops_full_attention == 8 * 2 * (2 * layer + 64 * 1000 + seen)
    assert decode.flops == pytest.approx(8 * 2 * (2 * layer + 64 * 1000 + seen / 2), rel=1e-2)
    prefill = prefill_work(model, max_seq_len=512, num_chunks=2)
    assert prefill.tokens == 2 * 256
    assert prefill.flops_full_attention == 2 * (256 * 2 * (2 * layer + seen) + 2 * 64 * 1000)  # the head for one token
