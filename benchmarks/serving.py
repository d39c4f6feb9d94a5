"""Tokens per second of a server with eight streaming clients, beside those of the bare decode loop, and what a cached
prefix saves of the time to the first token.

    uv run --extra cpu-kernels python benchmarks/serving.py BUNDLE [--weights FORMAT] [--tokens 128] [--rounds 5]

The server is `lifecycle serve BUNDLE`, a process of its own; the loop is that of `benchmarks/decode.py` in this one.
They take turns, so each has the machine for itself. A round of the server is eight completions at once, greedy, of
random prompts of 64 ids, with as many tokens as are wanted, streamed by token; its time is that from the last client's
first token to the first client's last one, in which all eight decode. The first token's time is that of one request
alone: of 1,024 ids that the server has not seen, and of the same ids but for the last 128.
"""

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from decode import Ours

from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.inference.bundle import load_params
from lifecycle.weights.published import load_config

ROWS, LENGTH, SLOT = 8, 64, 2048
PREFIX, AFTER = 896, 128


@contextmanager
def server(bundle: Path, weights: str | None) -> Iterator[str]:
    """The address of `lifecycle serve`."""
    settings = ["serve.port=0", f"serve.max_seq_len={SLOT}", f"serve.num_slots={ROWS}"]
    settings += [f"serve.weights={weights}"] if weights else []
    command = [Path(sys.executable).parent / "lifecycle", "serve", bundle, *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        shown = (re.search(r"http://\S+", line) for line in process.stdout)
        address = next((found.group() for found in shown if found), None)
        if address is None:
            raise SystemExit("the server ended before it was ready; its error is above")
        yield address.rstrip("/")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


async def stream(client: httpx.AsyncClient, ids: list[int], tokens: int) -> list[tuple[float, int]]:
    """When text came, in seconds, and how many tokens the answer had by then."""
    name = (await client.get("/v1/models")).json()["data"][0]["id"]
    wanted: dict[str, Any] = {"model": name, "prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True}
    wanted |= {"ignore_eos": True, "logprobs": 0}
    seen, count = [], 0
    async with client.stream("POST", "/v1/completions", json=wanted) as answer:
        async for line in answer.aiter_lines():
            if answer.status_code != 200:
                raise SystemExit(f"the server answers {answer.status_code}: {line}")
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                count += len((choice["logprobs"] or {"tokens": ()})["tokens"])
                seen.append((time.perf_counter(), count))
    return seen


async def rate(client: httpx.AsyncClient, prompts: list[list[int]], tokens: int) -> float:
    """Tokens per second of all clients, while all decode."""
    streams = await asyncio.gather(*(stream(client, prompt, tokens) for prompt in prompts))
    began, ended = max(seen[0][0] for seen in streams), min(seen[-1][0] for seen in streams)

    def by(seen: list[tuple[float, int]], when: float) -> int:
        return max(count for at, count in seen if at <= when)

    return sum(by(seen, ended) - by(seen, began) for seen in streams) / (ended - began)


async def first_token_s(client: httpx.AsyncClient, ids: list[int]) -> float:
    began = time.perf_counter()
    return (await stream(client, ids, 1))[0][0] - began


async def measure(address: str, loop: Ours, vocab_size: int, tokens: int, rounds: int) -> None:
    """Prints each round, and the medians."""
    draws = np.random.default_rng(0)

    def random_ids(*shape: int) -> Any:
        return draws.integers(0, vocab_size, shape).tolist()

    rates: list[tuple[float, float]] = []
    times: list[tuple[float, float]] = []
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        for number in range(rounds + 1):  # the first one warms up
            prompts = random_ids(ROWS, LENGTH)
            bare = ROWS / loop.decode(prompts, tokens).step_s
            served = await rate(client, prompts, tokens)
            prefix = random_ids(PREFIX)
            new, cached = [await first_token_s(client, prefix + random_ids(AFTER)) for _ in range(2)]
            print(f"loop {bare:.1f} tokens/s, server {served:.1f}; first token {new:.3f} s, cached {cached:.3f}")
            if number:
                rates.append((bare, served))
                times.append((new, cached))
    ratio, share = (statistics.median(b / a for a, b in pairs) for pairs in (rates, times))
    print(f"server / loop {ratio:.3f}; time to the first token with a cached prefix / without {share:.3f}")


def main() -> None:
    """Measures one bundle."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", choices=["int8", "int4", "fp8"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = load_config(given.bundle).trunk
    loop = Ours(config, load_params(config, given.bundle, weights=given.weights), ROWS, SLOT)
    with server(given.bundle, given.weights) as address:
        asyncio.run(measure(address, loop, config.vocab_size, given.tokens, given.rounds))


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
