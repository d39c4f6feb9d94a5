"""Tokens per second of a server with eight streaming clients, beside those of the bare decode loop, and what a cached
prefix saves of the time to the first token.

    uv run python benchmarks/serving.py BUNDLE [--weights FORMAT] [--tokens 256] [--rounds 5]

The server is `lifecycle serve BUNDLE`, a process of its own; the loop is that of `benchmarks/decode.py` in this one.
They take turns, so each has the machine for itself; a round of the server is compared with the mean of the loop's
before and after it, since the machine's speed drifts. A round of the server is eight completions at once, greedy, of
random prompts, streamed, each timed from its first token to its last. The loop's time is without its prompts, of which
the server computes some while others decode already: so they have 16 ids only. The first token's time is that of one
request alone: of 1,024 ids that the server has not seen, and of the same ids but for the last 128.
"""

import argparse
import asyncio
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from decode import Ours

from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.inference.bundle import load_params
from lifecycle.weights.published import load_config

ROWS, LENGTH, SLOT = 8, 16, 2048
PREFIX, AFTER = 896, 128


@contextmanager
def server(bundle: Path, weights: str | None) -> Generator[str]:
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


async def stream(client: httpx.AsyncClient, name: str, ids: list[int], tokens: int) -> list[float]:
    """When parts of an answer came, in seconds. Little is done here: the clients share the server's cores."""
    wanted: dict[str, Any] = {"model": name, "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with client.stream("POST", "/v1/completions", json={**wanted, "stream": True}) as answer:
        parts = [(time.perf_counter(), part) async for part in answer.aiter_raw()]
    if answer.status_code != 200:
        raise SystemExit(f"the server answers {answer.status_code}: {parts[0][1].decode()}")
    return [when for when, part in parts if b'"choices"' in part]


async def rate(client: httpx.AsyncClient, name: str, prompts: list[list[int]], tokens: int) -> float:
    """Tokens per second of all clients together, each behind its first one."""
    streams = await asyncio.gather(*(stream(client, name, prompt, tokens) for prompt in prompts))
    return sum((tokens - 1) / (seen[-1] - seen[0]) for seen in streams)


async def first_token_s(client: httpx.AsyncClient, name: str, ids: list[int]) -> float:
    began = time.perf_counter()
    return (await stream(client, name, ids, 1))[0] - began


async def measure(address: str, loop: Ours, vocab_size: int, tokens: int, rounds: int) -> None:
    """Prints each round, and the medians."""
    draws = np.random.default_rng(0)

    def random_ids(*shape: int) -> Any:
        return draws.integers(0, vocab_size, shape).tolist()

    rates: list[tuple[float, float]] = []
    times: list[tuple[float, float]] = []
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        for number in range(rounds + 1):  # the first one warms up
            prompts = random_ids(ROWS, LENGTH)
            before = ROWS / loop.decode(prompts, tokens).step_s
            served = await rate(client, name, prompts, tokens)
            bare = (before + ROWS / loop.decode(prompts, tokens).step_s) / 2
            prefix = random_ids(PREFIX)
            new, cached = [await first_token_s(client, name, prefix + random_ids(AFTER)) for _ in range(2)]
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
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = load_config(given.bundle).trunk
    loop = Ours(config, load_params(config, given.bundle, weights=given.weights), ROWS, SLOT)
    with server(given.bundle, given.weights) as address:
        asyncio.run(measure(address, loop, config.vocab_size, given.tokens, given.rounds))


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
