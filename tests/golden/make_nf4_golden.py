"""Makes the golden values of NF4 with `bitsandbytes`: 4-bit codes of a weight and its scales, each in 8 bits again.

Run it in an environment of its own, never the project's (made with torch 2.13.0, bitsandbytes 0.50.2, on a CPU):

    python -m venv /tmp/bnb && /tmp/bnb/bin/pip install 'torch<=2.13.0' numpy bitsandbytes
    /tmp/bnb/bin/python tests/golden/make_nf4_golden.py

Writes `nf4.npz` beside itself: of the weight `numbers * factors [outputs, inputs]` in float32, as a linear layer of
torch has it, the `codes` and the `scales [outputs, 1]` in float32. There are 256 blocks of 64 inputs, so that one mean
and one span of scales are of all of them, there as here.
"""
# pyrefly: ignore-errors[missing-import]

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

draws = np.random.default_rng(0)
numbers = np.rint(40 * draws.standard_normal((256, 64))).clip(-127, 127).astype(np.int8)
numbers[3] = 0
factors = draws.uniform(0.001, 0.1, (256, 1)).astype(np.float32)
weight = numbers * factors
packed, state = bnb.quantize_4bit(torch.from_numpy(weight), blocksize=64, quant_type="nf4", compress_statistics=True)
codes = np.stack([packed.numpy() >> 4, packed.numpy() & 15], axis=-1).reshape(weight.shape)
scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
whole = bnb.dequantize_4bit(packed, state).numpy()
np.testing.assert_allclose(whole, state.code.numpy()[codes] * scales.numpy()[:, None], rtol=1e-6)  # codes as read above
np.savez_compressed(
    Path(__file__).parent / "nf4.npz",
    numbers=numbers,
    factors=factors,
    codes=codes,
    scales=scales.numpy()[:, None],
)
