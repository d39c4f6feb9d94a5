"""Tokens per second of decoding with drafts beside those without, of the same requests, one at a time, in turn.

    uv run python benchmarks/speculation.py BUNDLE [--method ngram] [--draft BUNDLE]
        [--num-tokens 4] [--weights FORMAT] [--draft-weights FORMAT] [--prompts FILE] [--tokens 200] [--rounds 3]

The requests are chats, by default edits of a file of this project, which n-gram drafts are good at; `--prompts` names a
JSONL file whose rows have `prompt`. Answers are greedy. Each is timed from its first part to its last, so prompts do
not count. The engine chooses by itself when to draft, as in a server. Whether all tokens are the same is printed too.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import lifecycle.inference.texts
from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.drafters import drafter_for
from lifecycle.inference.engine import Engine
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.speculation import SpeculationConfig

EDITED = Path(lifecycle.inference.texts.__file__)
EDITS = (
    "Rename the argument `model` to `language_model` everywhere.",
    "Add a comment line before each function.",
    "Replace double quotes by single quotes.",
    "Remove the docstrings.",
)
SLOT = 2048


def questions(prompts: Path | None) -> list[str]:
    """The rows' prompts, or the edits."""
    if prompts is not None:
        return [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    source = EDITED.read_text()
    return [f"Here is a Python file:\n```python\n{source}\n```\n{edit} Answer with the whole file." for edit in EDITS]


def answers(engine: Engine, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float]:
    """All answers' ids, and tokens per second behind their first parts."""
    ids, seconds, num_timed = [], 0.0, 0
    for prompt in prompts:
        seen: list[tuple[float, int]] = []
        own: list[int] = []
        for event in engine.submit(prompt, SamplingParams(temperature=0.0, max_tokens=tokens)):
            own += [token.id for token in event.tokens]
            seen.append((time.perf_counter(), len(own)))
        (began, first), (ended, last) = seen[0], seen[-1]
        seconds, num_timed = seconds + ended - began, num_timed + last - first
        ids.append(own)
    return ids, num_timed / seconds


def main() -> None:
    """Prints each round, and the median of the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--method", default="ngram")
    parser.add_argument("--draft", type=Path, metavar="BUNDLE")
    parser.add_argument("--num-tokens", type=int, default=4)
    parser.add_argument("--weights", choices=["int8", "int4", "fp8"])
    parser.add_argument("--draft-weights", choices=["int8", "int4", "fp8"])
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = load_bundle(given.bundle, weights=given.weights)
    settings = {"method": given.method, "num_tokens": given.num_tokens}
    settings |= {"bundle": given.draft, "weights": given.draft_weights}
    config = SpeculationConfig.model_validate(settings)
    drafter = drafter_for(config, model, given.bundle, weights=given.weights, length=SLOT)
    prompts = [
        list(model.template.render([{"role": "user", "content": text}], add_generation_prompt=True).ids)
        for text in questions(given.prompts)
    ]
    ratios = []
    plain = Engine(model, 1, max_seq_len=SLOT, warm_up=True)
    drafting = Engine(model, 1, max_seq_len=SLOT, warm_up=True, drafter=drafter)
    with plain, drafting:
        for number in range(given.rounds + 1):  # the first one warms up
            own, slow = answers(plain, prompts, given.tokens)
            before = drafting.stats
            found, fast = answers(drafting, prompts, given.tokens)
            steps = drafting.stats.decode_steps - before.decode_steps
            same = "the same" if own == found else "OTHERS"
            print(
                f"plain {slow:.1f} tokens/s, with drafts {fast:.1f}, ratio {fast / slow:.2f}; "
                f"{sum(map(len, found))} tokens in {steps} steps; tokens are {same}",
                flush=True,
            )
            if number:
                ratios.append(fast / slow)
    print(f"ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
