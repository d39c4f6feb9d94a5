"""The other side of `benchmarks/decode.py --gguf`: llama.cpp on a GGUF file.

    PYTHON -P benchmarks/decode_llama_peer.py FILE.gguf

Runs in an environment with NumPy and llama-cpp-py-sync, and speaks as `decode_peer.py` does. A step is one
`llama_decode` of a token for each row by all cores, and the largest logit.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

ERROR = 4  # of llama.cpp's levels


def main() -> None:
    """Answers until the input ends."""
    bindings = importlib.import_module("llama_cpp_py_sync._cffi_bindings")
    ffi, lib = bindings.get_ffi(), bindings.get_lib()

    def log(level: int, text: Any, _: Any) -> None:
        if level >= ERROR:
            sys.stderr.write(ffi.string(text).decode())

    quiet = ffi.callback("void(enum ggml_log_level, const char *, void *)", log)
    lib.llama_log_set(quiet, ffi.NULL)
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(sys.argv[1].encode(), settings)
    if model == ffi.NULL:
        raise SystemExit(f"{sys.argv[1]}: llama.cpp does not read it")
    for line in sys.stdin:
        wanted = json.loads(line)
        print(json.dumps(Rows(ffi, lib, model, len(wanted["prompts"])).decode(**wanted)), flush=True)


class Rows:
    """A context of llama.cpp with so many sequences."""

    def __init__(self, ffi: Any, lib: Any, model: Any, rows: int, length: int = 1024) -> None:
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = length * rows, rows
        settings.n_threads = settings.n_threads_batch = os.cpu_count()
        self._lib, self._context = lib, lib.llama_init_from_model(model, settings)
        self._num_ids = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._logits = lambda place: np.frombuffer(
            ffi.buffer(lib.llama_get_logits_ith(self._context, place), 4 * self._num_ids), np.float32
        )

    def decode(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Greedy ids, and the seconds of a step after the first; ends the context."""
        ids = [[self._next(prompt, range(len(prompt)), [row] * len(prompt))[-1]] for row, prompt in enumerate(prompts)]
        began = time.perf_counter()
        for step in range(tokens - 1):
            newest, places = [own[-1] for own in ids], [len(prompt) + step for prompt in prompts]
            for own, token in zip(ids, self._next(newest, places, range(len(ids))), strict=True):
                own.append(token)
        seconds = time.perf_counter() - began
        self._lib.llama_free(self._context)
        return {"ids": ids, "step_s": seconds / (tokens - 1)}

    def _next(self, tokens: Any, positions: Any, rows: Any) -> list[int]:
        """What follows each token that is the last of its row."""
        lib, rows = self._lib, list(rows)
        is_last = [row != after for row, after in zip(rows, [*rows[1:], -1], strict=True)]
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for place, (token, position, row) in enumerate(zip(tokens, positions, rows, strict=True)):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, row, is_last[place]
        if lib.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(self._context)
        made = [int(self._logits(place).argmax()) for place, is_wanted in enumerate(is_last) if is_wanted]
        lib.llama_batch_free(batch)
        return made


if __name__ == "__main__":
    main()
