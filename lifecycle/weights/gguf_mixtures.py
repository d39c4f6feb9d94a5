"""Which encoding each tensor of a GGUF file has, for the name of a mixture (`q4_k_m`).

llama.cpp's rules (`src/llama-quant.cpp`, without an importance matrix): vectors, norms and routers stay float32; the
head, or an embedding that serves as one, has more bits; Q4_K_M also gives more to half of the values' and of the
feed-forwards' down matrices. A row that is no whole number of blocks gets an encoding with smaller ones. What must
hold: the same tensors have the same encodings as in `llama-quantize`'s file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import LlamaFileType

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.layout import Shape
from lifecycle.weights.gguf_encodings import Encoding, encoding_named

KEPT = ("_norm.weight", "ffn_gate_inp.weight")
SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 32 for 256
HEADS = ("output.weight", "token_embd.weight")
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
SMALL = ("attn_k", "attn_v")  # beside eight experts


@dataclass(frozen=True)
class Mixture:
    """A file's kind, and the encoding of most of its matrices."""

    file_type: int  # llama.cpp's `llama_ftype`
    most: str

    def encoding(self, name: str, shape: Shape, config: ModelConfig) -> Encoding:
        """The encoding of the tensor `name`."""
        if len(shape) < 2 or not name.endswith(".weight") or name.endswith(KEPT):
            return encoding_named("F32")
        wanted = encoding_named(self._wanted(name, shape, config))
        if shape[-1] % wanted.values:
            wanted = encoding_named(SMALLER.get(wanted.name, "F16"))
        return encoding_named("F16") if shape[-1] % wanted.values else wanted

    def _wanted(self, name: str, shape: Shape, config: ModelConfig) -> str:
        if self.most in ("F32", "F16", "BF16"):
            return self.most
        if name == HEADS[config.tie_embeddings]:
            is_whole = shape[-1] % encoding_named(self.most).values == 0
            return "Q6_K" if is_whole and self.most != "Q8_0" else "Q8_0"
        match = BLOCK.fullmatch(name)
        if match is None:
            return self.most
        has_eight_experts = config.moe is not None and config.moe.num_experts == 8
        if has_eight_experts and match[2] in SMALL:
            return "Q8_0"
        if has_eight_experts and match[2] == "attn_output" and self.most == "Q4_K":
            return "Q5_K"
        return _of_q4_k_m(int(match[1]), match[2], config) if self.most == "Q4_K" else self.most


def _of_q4_k_m(layer: int, part: str, config: ModelConfig) -> str:
    layers = config.num_layers
    has_more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if part in ("attn_v", "ffn_down", "ffn_down_exps") and has_more:
        return "Q6_K"
    is_70b = layers == 80 and config.num_heads != config.num_kv_heads  # whose values are small
    return "Q5_K" if part == "attn_v" and is_70b else "Q4_K"


MIXTURES: Mapping[str, Mixture] = {
    "f32": Mixture(LlamaFileType.ALL_F32.value, "F32"),
    "f16": Mixture(LlamaFileType.MOSTLY_F16.value, "F16"),
    "bf16": Mixture(LlamaFileType.MOSTLY_BF16.value, "BF16"),
    "q8_0": Mixture(LlamaFileType.MOSTLY_Q8_0.value, "Q8_0"),
    "q4_0": Mixture(LlamaFileType.MOSTLY_Q4_0.value, "Q4_0"),
    "q4_k_m": Mixture(LlamaFileType.MOSTLY_Q4_K_M.value, "Q4_K"),
}
