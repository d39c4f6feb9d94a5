"""The verifier `code`: whether Python code passes its tests, in closed processes (`core/isolation/confine.py`).

The code is what the output's last block marked with three backticks holds, else all of it. Tests run in a process in
which the code never runs, and see its functions and objects from outside (`remote.py`); so code that patches `assert`,
leaves with `sys.exit(0)`, or prints what a test runner prints passes nothing. Functions take and return data: numbers,
text, bytes, lists, tuples, sets, dicts, dates, fractions; arrays come back as lists.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lifecycle.core.isolation.confine import Limits
from lifecycle.evals.verifiers.base import Verdict, Verifier, shared_pool
from lifecycle.evals.verifiers.test_sources import problem_of_test

BLOCK = re.compile(r"(?ims)```[ \t]*(?:(?:python3?|py)[ \t]*)?\r?\n(.*?)(?:^[ \t]*```|\Z)")
PROGRAM = "lifecycle.evals.verifiers.code_program:check"


class Code(Verifier):
    """Settings of the tests: what they are, how they count, and the limits of one output's code."""

    verifier: ClassVar[str] = "code"

    answer: Annotated[
        str,
        Field(
            min_length=1,
            description="the column with the tests: sources with asserts, functions test_*, unittest cases or "
            "check(candidate); or a list of {input, output}, for which the code is a program",
        ),
    ] = "tests"
    entry_point: Annotated[str, Field(description="the column with the name that check gets")] = "entry_point"
    counts_each: Annotated[bool, Field(description="the score is the share of tests passed")] = False
    cpu_s: Annotated[int, Field(ge=1, le=3600, description="CPU seconds of the code, and of each program's run")] = 5
    wall_s: Annotated[float, Field(gt=0, le=36000, description="seconds for all tests of an output")] = 30.0
    memory_mib: Annotated[int, Field(ge=128, le=1 << 20, description="address space of the code")] = 1024

    def gold(self, columns: Mapping[str, Any]) -> Any:
        """The tests, and the entry point if the row has one."""
        return {"tests": columns[self.answer], "entry_point": columns.get(self.entry_point) or ""}

    def problem(self, answer: Any) -> str:
        """Tests must be there, and run something."""
        tests, entry_point = _taken_apart(answer)
        if not tests:
            return "there is no test"
        if all(isinstance(test, Mapping) for test in tests):
            wrong = [test for test in tests if any(not isinstance(test.get(name), str) for name in ("input", "output"))]
            return "a case needs `input` and `output`, texts" if wrong else ""
        if not all(isinstance(test, str) for test in tests) or not isinstance(entry_point, str):
            return "expected sources of tests, or cases with `input` and `output`"
        return next(filter(None, (problem_of_test(test, entry_point) for test in tests)), "")

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for code that passes, or the share of tests; 0 and a fault if a limit ended it."""
        limits = Limits(cpu_s=self.cpu_s, wall_s=self.wall_s, memory_bytes=self.memory_mib << 20)
        items = [self._item(output, answer) for output, answer in zip(outputs, answers, strict=True)]
        results = shared_pool(PROGRAM, limits, is_fresh=True).map(items)
        return [Verdict(0.0, one.failure) if one.failure else Verdict(self._score(one.value)) for one in results]

    def _item(self, output: str, answer: Any) -> dict[str, Any]:
        tests, entry_point = _taken_apart(answer)
        kind = "tests" if isinstance(tests[0], str) else "cases"
        return {"source": code_of(output), kind: tests, "entry_point": entry_point, "counts_each": self.counts_each}

    def _score(self, value: Mapping[str, Any]) -> float:
        passed = value["passed"]
        return sum(passed) / len(passed) if self.counts_each and passed else float(bool(passed) and all(passed))


def code_of(output: str) -> str:
    """The code in an output."""
    blocks = BLOCK.findall(output)
    return blocks[-1] if blocks else output


def _taken_apart(answer: Any) -> tuple[list[Any], Any]:
    """Tests or cases, and the entry point."""
    is_pair = isinstance(answer, Mapping) and "tests" in answer
    tests, entry_point = (answer["tests"], answer.get("entry_point") or "") if is_pair else (answer, "")
    return (list(tests) if isinstance(tests, list | tuple) else [tests] if tests else []), entry_point
