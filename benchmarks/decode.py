"""Tokens per second of the decode loop and of another engine, on one model and the same prompts, in turn.

    uv run python benchmarks/decode.py PYTHON OUT [--model FILE] [--weights FORMAT] [--length 64] [--tokens 128]
        [--slot 1024] [--rounds 3]
    uv run python benchmarks/decode.py PYTHON OUT --bundle BUNDLE --gguf q8_0 --weights int8

`PYTHON` is an interpreter with what the other side needs, which is not part of this project: torch and transformers for
`generate` in float32; with `--gguf` NumPy and llama-cpp-py-sync for llama.cpp on the bundle in one of the encodings of
`lifecycle export`. The model is `BUNDLE` or one of `configs/models` with random weights (SmolLM2's 135M by default),
written to `OUT`; ours is in float32 or in the format `--weights`: what that costs is what `benchmarks/quantised.py`
prints. Each round decodes greedily with 1 and with 8 rows: prompts of `--length` tokens, `--tokens` more; of ours in
slots of `--slot` positions. Prefill is not counted: ours and llama.cpp's run before the clock starts, and of
`generate` a call for one token is subtracted. Ids are compared. The roof is what a step of ours must read, weights and
the cache's tokens, at the rate at which all cores read a large array in the same minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import yaml

from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.inference.bundle import load_params
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.programs import Programs
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.scheduler import MAX_STEPS
from lifecycle.inference.slots import SlotTable
from lifecycle.model.cache import pages_of
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, init_params
from lifecycle.weights.published import load_config, save_weights

HERE = Path(__file__).parent
MODEL = HERE.parent / "configs/models/smollm2_135m.yaml"
ROWS = (1, 8)
READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Decoded:
    """One side's ids, and the seconds of a step."""

    ids: list[list[int]]
    step_s: float


class Ours:
    """The engine's programs with every slot in use."""

    def __init__(self, config: ModelConfig, params: Params, rows: int, slot: int) -> None:
        self.programs = Programs(config, params, rows, slot, config.vocab_size)
        self.table = SlotTable(rows, self.programs.plan, slot, config.vocab_size)
        for number, pages in enumerate(np.arange(rows * pages_of(slot)).reshape(rows, -1).tolist()):
            self.table.set_pages(number, {"full": pages})

    def decode(self, prompts: list[list[int]], tokens: int) -> Decoded:
        """Prefills the prompts, then decodes by dispatches of up to `MAX_STEPS` steps."""
        table, greedy = self.table, SamplingParams(temperature=0.0)
        ids = [[self._first(slot, prompt, greedy)] for slot, prompt in enumerate(prompts)]
        began = time.perf_counter()
        while (left := tokens - len(ids[0])) > 0:
            for slot, own in enumerate(ids):
                table.advance(slot, own[-1], len(prompts[slot]) + len(own) - 1, left)
            new = self.programs.decode(table.decode_rows(min(left, MAX_STEPS))).sampled.token
            for own, row in zip(ids, new, strict=True):
                own += row[row >= 0].tolist()
        return Decoded(ids, (time.perf_counter() - began) / (tokens - 1))

    def _first(self, slot: int, prompt: list[int], greedy: SamplingParams) -> int:
        self.table.open(slot, greedy, 0, ())
        chunk = Chunk(slot, 0, len(prompt), len(prompt))
        sampled, *_ = self.programs.prefill(self.table.prompt_rows([chunk], [prompt]))
        return int(sampled.token[0, 0])


class Peer:
    """A process that answers a line of settings with a line of results."""

    def __init__(self, python: Path, script: str, model: Path) -> None:
        command = [python, "-P", HERE / script, model]  # -P: or transformers imports our `kernels.py`
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def decode(self, prompts: list[list[int]], tokens: int) -> Decoded:
        """As `Ours.decode`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the other side ended; its error is above")
        return Decoded(**json.loads(answer))


def read_rate() -> float:
    """Bytes per second at which all cores together read a large array."""
    parts = np.split(np.ones(READ_BYTES // 8, np.int64), os.cpu_count() or 1)

    def once() -> float:
        threads = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return READ_BYTES / (time.perf_counter() - began)

    return max(once() for _ in range(5))


def step_bytes(config: ModelConfig, params: Params, rows: int, held: float) -> float:
    """What a step reads: weights once, and the keys and values of the tokens that the rows hold."""
    kept = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + 4 * rows * held * kept


def random_bundle(model: Path, out: Path) -> Path:
    """A model's config with random weights, written."""
    config = ModelConfig(**yaml.safe_load(model.read_text()))
    bundle = out / "bundle"
    bundle.mkdir(parents=True, exist_ok=True)
    save_weights(config, jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)), bundle)
    return bundle


def peer_of(python: Path, bundle: Path, out: Path, encoding: str | None) -> tuple[str, Peer]:
    """The other side and its name."""
    if encoding is None:
        return "transformers", Peer(python, "decode_peer.py", bundle)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{encoding}.gguf"
    export = [Path(sys.executable).parent / "lifecycle", "export", bundle, file, "--encoding", encoding]
    file.unlink(missing_ok=True)  # another bundle's, perhaps
    subprocess.run(export, check=True)
    return f"llama.cpp {encoding}", Peer(python, "decode_llama_peer.py", file)


def main() -> None:
    """Prints each round, and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("python", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--gguf", metavar="ENCODING")
    parser.add_argument("--weights", choices=["int8", "int4", "fp8"])
    for name, value in {"length": 64, "tokens": 128, "slot": 1024, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if given.gguf and not given.bundle:
        parser.error("--gguf needs --bundle: a file for llama.cpp has a tokenizer")
    out = given.out.absolute()
    bundle = (given.bundle or random_bundle(given.model, out)).absolute()
    config = load_config(bundle).trunk
    held = load_params(config, bundle, weights=given.weights)
    name_of_peer, peer = peer_of(given.python.absolute(), bundle, out, given.gguf)
    draws = np.random.default_rng(0)
    for rows in ROWS:
        prompts = draws.integers(0, config.vocab_size, (rows, given.length)).tolist()
        mine = Ours(config, held, rows, given.slot)
        sides = {"ours": mine, name_of_peer: peer}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        rates, ids = [], {}
        for number in range(given.rounds + 1):  # the first one warms up
            for name, side in sides.items():
                decoded = side.decode(prompts, given.tokens)
                ids[name] = np.array(decoded.ids)
                if number:
                    seconds[name].append(decoded.step_s)
            rates.append(read_rate())
        ours, theirs = (statistics.median(seconds[name]) for name in sides)
        same = (ids["ours"] == ids[name_of_peer]).mean()
        roof = step_bytes(config, held, rows, given.length + given.tokens / 2) / statistics.median(rates)
        print(
            f"rows {rows}: ours {rows / ours:.1f} tokens/s, {name_of_peer} {rows / theirs:.1f}, ratio "
            f"{theirs / ours:.2f}; {roof / ours:.0%} of the roof at {statistics.median(rates) / 1e9:.1f} GB/s; "
            f"{same:.0%} of the ids are the same",
            flush=True,
        )


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
