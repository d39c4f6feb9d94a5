"""What llama.cpp computes of our GGUF files: `gguf_files/llama_cpp.npz`, and the blocks that its quantiser writes.

Run it in the project's environment, with the Python of another that has llama.cpp (made with llama-cpp-py-sync
0.11739, llama.cpp's commit 0ce8cd1):

    uv venv llama && VIRTUAL_ENV=llama uv pip install llama-cpp-py-sync==0.11739
    uv run python tests/golden/make_llama_cpp_golden.py llama/bin/python

Of each model of `gguf_models.py`, written in F16: `NAME_hash` of the file's content, `NAME_greedy` (the tokens after
`PROMPT`) and `NAME_logits` after each token of `PROMPT`. `vocabulary`: the ids of `TEXTS`, each ended by -1, in the
tokenizer of `tiny.gguf`, written and read again. `Q4_K_blocks` and so on: the bytes of `drawn_values`, by ggml's
quantiser. `IQ1_S_values` and so on: the float32 values of `drawn_bytes`, by ggml's C code.
"""
# pyrefly: ignore-errors[missing-import]

import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "gguf_files"
MOST_TOKENS = 12
TEXTS = (
    "he 12 123", "He's\n\n  there\t1234!", "na\u00efve \u4f60\u597d \U0001f999", "<|im_start|> as text",
)  # fmt: skip
QUANTISED = {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
# Bytes and values of a block, of each encoding but the plain ones.
BLOCKS = {
    "Q4_0": (18, 32), "Q4_1": (20, 32), "Q5_0": (22, 32), "Q5_1": (24, 32), "Q8_0": (34, 32), "Q2_K": (84, 256),
    "Q3_K": (110, 256), "Q4_K": (144, 256), "Q5_K": (176, 256), "Q6_K": (210, 256), "IQ1_S": (50, 256),
    "IQ1_M": (56, 256), "IQ2_XXS": (66, 256), "IQ2_XS": (74, 256), "IQ2_S": (82, 256), "IQ3_XXS": (98, 256),
    "IQ3_S": (110, 256), "IQ4_NL": (18, 32), "IQ4_XS": (136, 256), "TQ1_0": (54, 256), "TQ2_0": (66, 256),
    "MXFP4": (17, 32), "NVFP4": (36, 64),
}  # fmt: skip


def drawn_bytes(name: str) -> np.ndarray:
    """Any bytes, as blocks of 512 values: scales among them may be infinite or no numbers."""
    size, values = BLOCKS[name]
    return np.random.RandomState(zlib.crc32(name.encode())).randint(0, 256, 512 // values * size).astype(np.uint8)


def drawn_values() -> np.ndarray:
    """Values whose blocks meet every branch of the quantisers, `[48, 256]`."""
    values = (0.05 * np.random.RandomState(0).standard_normal((48, 256))).astype(np.float32)
    values[0], values[1], values[2, :32] = 0, 1, 0
    values[3], values[4], values[5, 0] = values[3] * 1e-20, np.abs(values[4]), 100
    values[6] = -np.abs(values[6])
    return values


def in_llama_cpp(request: dict[str, Any]) -> dict[str, Any]:
    """In the other environment: ids of texts, greedy tokens and logits of prompts, blocks of values."""
    import ctypes

    from llama_cpp_py_sync import _cffi_bindings as bindings

    ffi, lib = bindings.get_ffi(), bindings.get_lib()
    lib.llama_backend_init()
    base = ctypes.CDLL(str(Path(bindings.__file__).parent / "libggml-base.so.0"))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def opened(path: str) -> Any:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        model = lib.llama_model_load_from_file(path.encode(), params)
        assert model != ffi.NULL, path
        return model

    def ids_of(model: Any, text: str) -> list[int]:
        data = text.encode()
        out = ffi.new("llama_token[]", 4 * len(data))
        count = lib.llama_tokenize(lib.llama_model_get_vocab(model), data, len(data), out, 4 * len(data), False, False)
        return list(out[0:count])

    def context_of(model: Any) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
        params.type_k = params.type_v = 0  # float32
        return lib.llama_init_from_model(model, params)

    def logits_of(model: Any, context: Any, ids: list[int], first: int) -> np.ndarray:
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
            batch.seq_id[i][0] = 0
        assert lib.llama_decode(context, batch) == 0
        size = 4 * lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        rows = [ffi.buffer(lib.llama_get_logits_ith(context, i), size)[:] for i in range(len(ids))]
        return np.stack([np.frombuffer(row, np.float32) for row in rows])

    def decoded(name: str) -> list[float]:
        decode = getattr(base, f"dequantize_row_{name if '_K' in name else name.lower()}".replace("_Q", "_q"))
        decode.argtypes, decode.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        data, out = drawn_bytes(name), np.zeros(512, np.float32)
        decode(data.ctypes.data, out.ctypes.data, 512)
        return out.tolist()

    answer: dict[str, Any] = {"models": {}, "blocks": {}, "values": {name: decoded(name) for name in BLOCKS}}
    for name, path in request["models"].items():
        model = opened(path)
        context, ids = context_of(model), list(request["prompt"])
        logits = logits_of(model, context, ids, 0)
        last = logits[-1]
        for _ in range(MOST_TOKENS):
            ids.append(int(last.argmax()))
            last = logits_of(model, context, ids[-1:], len(ids) - 1)[-1]
        greedy = ids[len(request["prompt"]) :]
        answer["models"][name] = {"logits": logits.tolist(), "greedy": greedy}
        answer["vocabulary"] = [ids_of(model, text) for text in TEXTS]
    values = drawn_values()
    for name, kind in QUANTISED.items():
        out = np.zeros(values.size, np.uint8)
        count = base.ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, None)
        answer["blocks"][name] = out[:count].tolist()
    return answer


def main(python: str) -> None:
    """In the project's environment: writes the files, lets llama.cpp read them, writes what it said."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from lifecycle.cli.export_gguf import export_gguf
    from tests.golden.gguf_models import MODELS, PROMPT, content_hash, write_bundle

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.gguf" for name in MODELS}
        for name, path in paths.items():
            export_gguf(write_bundle(name, Path(folder) / name), path, "f16")
            found[f"{name}_hash"] = np.array(content_hash(path))
        request = {"models": {name: str(path) for name, path in paths.items()}, "prompt": PROMPT}
        printed = subprocess.run(
            [python, __file__, "--here"], input=json.dumps(request), capture_output=True, text=True, check=True
        ).stdout
    answer = json.loads(printed.splitlines()[-1])
    for name, of in answer["models"].items():
        found[f"{name}_logits"] = np.array(of["logits"], np.float32)
        found[f"{name}_greedy"] = np.array(of["greedy"], np.int32)
    found["vocabulary"] = np.array([i for ids in answer["vocabulary"] for i in (*ids, -1)], np.int32)
    found |= {f"{name}_blocks": np.array(block, np.uint8) for name, block in answer["blocks"].items()}
    found |= {f"{name}_values": np.array(values, np.float32) for name, values in answer["values"].items()}
    np.savez_compressed(FOLDER / "llama_cpp.npz", **found)


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        print(json.dumps(in_llama_cpp(json.load(sys.stdin))))
    else:
        main(sys.argv[1])
