"""Makes a tiny GGUF model with llama.cpp's own Python package.

Run it in an environment of its own, never the project's (made with gguf 0.19.0, numpy 2.4.6):

    python -m venv /tmp/gguf && /tmp/gguf/bin/pip install gguf
    /tmp/gguf/bin/python tests/golden/make_gguf_golden.py

Writes `gguf_files/` beside itself:

- `tiny.gguf`: a Llama of one layer whose tensors are of several encodings, with a byte-level vocabulary of 261;
- `tiny.json`: the SHA-256 of each tensor in float32 by its published (Hugging Face) name, in that order of rows.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

FOLDER = Path(__file__).parent / "gguf_files"
SCALES_AT = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}  # where float16s lie
D_MODEL, D_FF, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 64, 2, 1, 32, 261
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# published name -> (name in GGUF, shape, encoding)
MATRICES = {
    "model.embed_tokens.weight": ("token_embd.weight", (VOCAB, D_MODEL), "Q4_K"),
    "model.layers.0.self_attn.q_proj.weight": ("blk.0.attn_q.weight", (HEADS * HEAD_DIM, D_MODEL), "Q6_K"),
    "model.layers.0.self_attn.k_proj.weight": ("blk.0.attn_k.weight", (KV_HEADS * HEAD_DIM, D_MODEL), "Q8_0"),
    "model.layers.0.self_attn.v_proj.weight": ("blk.0.attn_v.weight", (KV_HEADS * HEAD_DIM, D_MODEL), "Q4_0"),
    "model.layers.0.self_attn.o_proj.weight": ("blk.0.attn_output.weight", (D_MODEL, HEADS * HEAD_DIM), "Q4_1"),
    "model.layers.0.mlp.gate_proj.weight": ("blk.0.ffn_gate.weight", (D_FF, D_MODEL), "BF16"),
    "model.layers.0.mlp.up_proj.weight": ("blk.0.ffn_up.weight", (D_FF, D_MODEL), "F16"),
    "model.layers.0.mlp.down_proj.weight": ("blk.0.ffn_down.weight", (D_MODEL, D_FF), "Q4_0"),
    "model.layers.0.input_layernorm.weight": ("blk.0.attn_norm.weight", (D_MODEL,), "F32"),
    "model.layers.0.post_attention_layernorm.weight": ("blk.0.ffn_norm.weight", (D_MODEL,), "F32"),
    "model.norm.weight": ("output_norm.weight", (D_MODEL,), "F32"),
}


def random_bytes(rng: np.random.Generator, encoding: str, values: int) -> np.ndarray:
    """Bytes of blocks with `values` values; scales are small numbers, all else is anything."""
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    count = values // per_block
    if encoding in ("F32", "F16", "BF16"):
        numbers = (0.1 * rng.standard_normal(count)).astype(np.float32)
        if encoding == "BF16":  # its upper half
            return numbers.view(np.uint8).reshape(count, 4)[:, 2:].copy()
        return numbers.astype({"F32": np.float32, "F16": np.float16}[encoding]).view(np.uint8).reshape(count, -1)
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for at in SCALES_AT[encoding]:
        scales = (0.01 * rng.standard_normal(count)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def values_of(blocks: np.ndarray, encoding: str) -> np.ndarray:
    return dequantize(blocks.reshape(-1), GGMLQuantizationType[encoding]).astype(np.float32)


def published_rows(rows: int, heads: int) -> np.ndarray:
    """For each row of a published matrix of queries or keys, its row in GGUF: there the two halves of a head
    alternate."""
    there = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
    return np.argsort(there)


def characters() -> list[str]:
    """GPT-2's characters for bytes: printable Latin-1 for itself, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(0x100 + others.index(b)) for b in range(256)]


def write_model(rng: np.random.Generator) -> None:
    writer = GGUFWriter(FOLDER / "tiny.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(1)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*SPECIALS, *characters(), "12", "he"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS)))
    writer.add_token_merges(["1 2", "h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    expected = {}
    for published, (name, shape, encoding) in MATRICES.items():
        blocks = random_bytes(rng, encoding, int(np.prod(shape)))
        writer.add_tensor(name, blocks.reshape(*shape[:-1], -1), raw_dtype=GGMLQuantizationType[encoding])
        values = values_of(blocks, encoding).reshape(shape)
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(published.split(".")[-2])
        expected[published] = values if heads is None else values[published_rows(shape[0], heads)]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hashes = {name: hashlib.sha256(np.ascontiguousarray(values)).hexdigest() for name, values in expected.items()}
    (FOLDER / "tiny.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write_model(np.random.default_rng(0))
