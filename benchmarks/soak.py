"""A server under ten times the load that it holds, with clients that leave: nothing is lost, garbled or kept.

    uv run python benchmarks/soak.py MINUTES [--slots 4] [--queue 8] [--clients 120] [--seed 0]

A tiny model's server is a process of its own. Before the load, and alone, it gives its answer to each of the
questions: completions, chats and responses, greedy and drawn by a seed, and embeddings. Then the clients ask at random,
most as streams; some leave in the middle. Each answer is compared with the first one, what a leaving client has read
must be its beginning, and nothing but 200 and 429 may come. At the end all slots are free, all answers are still the
same, and the process has no more memory, files and threads than in the first fifth of the time, but for a tenth.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lifecycle.testing.server import NAME, served

QUESTIONS = 48
LEAVING, WHOLE = 0.25, 0.1  # shares of the clients that leave, and of answers in one piece
WATCH_S, SETTLE_S = 10.0, 5.0
GROWTH = 1.1


@dataclass(frozen=True)
class Question:
    """A request and how its text is found in an answer and in a stream's event."""

    path: str
    body: dict[str, Any]

    def text(self, answer: dict[str, Any]) -> str:
        if self.path.endswith("embeddings"):
            return str(answer["data"][0]["embedding"])
        if self.path.endswith("responses"):
            return answer["output"][0]["content"][0]["text"]
        choice = answer["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    def delta(self, event: dict[str, Any]) -> str:
        if self.path.endswith("responses"):
            return event["delta"] if event["type"] == "response.output_text.delta" else ""
        choice = event["choices"][0]
        return choice["delta"].get("content") or "" if "delta" in choice else choice["text"]

    @property
    def has_stream(self) -> bool:
        return not self.path.endswith("embeddings")


def questions(draw: random.Random) -> list[Question]:
    """Prompts of 1 to 500 characters, answers of 4 to 200 tokens."""
    made: list[Question] = []
    for number, kind in zip(range(QUESTIONS), itertools.cycle(range(4)), strict=False):
        text = "".join(draw.choices("abcdefgh \u00e9\u2603\U0001f600", k=draw.choice((1, 20, 100, 500))))
        own = {"temperature": 0.0} if number % 8 < 4 else {"temperature": 1.0, "seed": number}
        most = draw.randint(4, 200)
        messages = [{"role": "user", "content": text}]
        path, body = (
            ("/v1/completions", {"prompt": text, "max_tokens": most, **own}),
            ("/v1/chat/completions", {"messages": messages, "max_tokens": most, **own}),
            ("/v1/responses", {"input": text, "max_output_tokens": most, "temperature": 0.0}),
            ("/v1/embeddings", {"input": text, "encoding_format": "base64"}),
        )[kind]
        made.append(Question(path, {"model": NAME, **body}))
    return made


@dataclass
class Soak:
    """The clients' common state."""

    client: httpx.AsyncClient
    questions: list[Question]
    expected: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    async def ask_all(self) -> list[str]:
        """Each answer in one piece, one after the other."""
        answers = [await self.client.post(own.path, json=own.body) for own in self.questions]
        return [own.text(answer.raise_for_status().json()) for own, answer in zip(self.questions, answers, strict=True)]

    async def visit(self, draw: random.Random) -> None:
        """One client's request; it may leave before the end."""
        number = draw.randrange(len(self.questions))
        question, leaves = self.questions[number], draw.random() < LEAVING
        body = question.body
        if question.has_stream and draw.random() >= WHOLE:
            body = body | {"stream": True}
        try:
            async with asyncio.timeout(draw.uniform(0, 2) if leaves else None):
                await self._read(number, body, draw.randint(1, 30) if leaves else None)
        except TimeoutError:
            self.counts["left"] += 1

    async def _read(self, number: int, body: dict[str, Any], most: int | None) -> None:
        question = self.questions[number]
        async with self.client.stream("POST", question.path, json=body) as response:
            if response.status_code == 429:
                self.counts["429"] += 1
                await asyncio.sleep(float(response.headers["retry-after"]))
            elif response.status_code != 200:
                self.faults.append(f"status {response.status_code}: {(await response.aread())[:200]!r}")
            elif not body.get("stream"):
                self._compare(number, question.text(json.loads(await response.aread())), True)
            else:
                text, is_whole = "", True
                async for count, event in _counted(_events(response)):
                    if count == most:
                        is_whole = False
                        self.counts["left"] += 1
                        break
                    text += question.delta(event)
                self._compare(number, text, is_whole)

    def _compare(self, number: int, text: str, is_whole: bool) -> None:
        expected = self.expected[number]
        if text != expected and (is_whole or not expected.startswith(text)):
            self.faults.append(f"question {number}: {text[:80]!r} instead of {expected[:80]!r}")
        self.counts["whole" if is_whole else "begun"] += 1


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def _counted[T](values: AsyncIterator[T]) -> AsyncIterator[tuple[int, T]]:
    count = 0
    async for value in values:
        yield count, value
        count += 1


def held(process: int) -> dict[str, int]:
    """What a process has: megabytes of memory, open files, threads."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {"MB": int(lines["VmRSS"].split()[0]) // 1024, "files": files, "threads": int(lines["Threads"])}


async def load(soak: Soak, process: int, minutes: float, num_clients: int, seed: int) -> list[dict[str, int]]:
    """Keeps the clients asking; what the server had every `WATCH_S`."""
    end, seen = time.monotonic() + 60 * minutes, [held(process)]

    async def client(number: int) -> None:
        draw = random.Random(f"{seed}-{number}")
        while time.monotonic() < end:
            await soak.visit(draw)

    async with asyncio.TaskGroup() as group:
        for number in range(num_clients):
            group.create_task(client(number))
        while time.monotonic() < end:
            await asyncio.sleep(WATCH_S)
            seen.append(held(process))
            print(f"{len(seen) * WATCH_S:6.0f} s  {seen[-1]}  {dict(soak.counts)}", flush=True)
    return seen


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    """A number of `/metrics`, summed over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


async def run(base: str, process: int, options: argparse.Namespace) -> list[str]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(base_url=base, timeout=300, limits=limits) as client:
        soak = Soak(client, questions(random.Random(options.seed)))
        soak.expected = await soak.ask_all()
        before = held(process)
        seen = await load(soak, process, options.minutes, options.clients, options.seed)
        await asyncio.sleep(SETTLE_S)
        if busy := await gauge(client, "lifecycle_active_slots") + await gauge(client, "lifecycle_queue_depth"):
            soak.faults.append(f"{busy:.0f} requests are still in the engine {SETTLE_S:.0f} s after the last client")
        if await soak.ask_all() != soak.expected:
            soak.faults.append("alone, the server no longer gives the same answers")
        early, after = seen[: max(len(seen) // 5, 2)], held(process)
        print(f"before {before}, early {early[-1]}, after {after}, {dict(soak.counts)}")
        for name, value in after.items():
            if value > GROWTH * (most := max(own[name] for own in early)):
                soak.faults.append(f"{name}: {value} after the load, {most} at its beginning")
        if not soak.counts["429"] or not soak.counts["left"]:
            soak.faults.append("the load was too small: nobody got 429, or nobody left")
        return soak.faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--queue", type=int, default=8)
    parser.add_argument("--clients", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with served(f"num_slots={options.slots}", f"max_queue={options.queue}") as (base, process):
        faults = asyncio.run(run(base, process.pid, options))
        assert process.poll() is None, "the server is alive"
    print(*faults[:20], f"{len(faults)} faults", sep="\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
