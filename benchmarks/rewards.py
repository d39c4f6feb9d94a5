"""Verdicts per second of the verifiers, on rows of maths questions whose `answer` ends with `#### NUMBER` (GSM8K's).

    uv run --extra rl python benchmarks/rewards.py ROWS.jsonl

Prints, for `maths`, how many answers are right against themselves and in other words, and how many wrong ones pass;
then the rate of formulas that sympy compares, and of code that runs its tests.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from lifecycle.core.cores import available_cores
from lifecycle.evals.verifiers.base import Verifier
from lifecycle.evals.verifiers.code import Code
from lifecycle.evals.verifiers.maths import Maths, gold_answer

CODE = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--formulas", type=int, default=4000)
    parser.add_argument("--codes", type=int, default=1000)
    arguments = parser.parse_args()
    golds = [json.loads(line)["answer"] for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    numbers = [int(gold_answer(gold).replace(",", "")) for gold in golds]
    print(f"{len(golds)} rows, {available_cores()} cores")
    forms = {
        "themselves": golds,
        "boxed": [rf"so \boxed{{{number}}}" for number in numbers],
        "in dollars": [f"He pays ${number:,}.00." for number in numbers],
        "one more": [f"#### {number + 1}" for number in numbers],
        "ten times": [rf"\boxed{{{10 * number}}}" for number in numbers],
        "the next row's": golds[1:] + golds[:1],
    }
    for name, outputs in forms.items():
        report(f"maths, {name}", Maths(), outputs, golds)
    roots = range(arguments.formulas)
    halves = [rf"\boxed{{\frac{{{n}\sqrt{{2}}}}{{2}}}}" for n in roots]
    report("formulas", Maths(), halves, [rf"\frac{{{n}}}{{\sqrt{{2}}}}" for n in roots])
    report("code", Code(), [CODE] * arguments.codes, [TESTS] * arguments.codes)


def report(name: str, verifier: Verifier, outputs: Sequence[str], answers: Sequence[object]) -> None:
    """Prints how many pass, and how fast, once the processes have been started."""
    verifier.verdicts(outputs[:32], answers[:32])
    started = time.perf_counter()
    passed = sum(verdict.score == 1.0 for verdict in verifier.verdicts(outputs, answers))
    took = time.perf_counter() - started
    print(f"{name}: {passed} of {len(outputs)} pass, {len(outputs) / took:,.0f} verdicts/s")


if __name__ == "__main__":
    main()
