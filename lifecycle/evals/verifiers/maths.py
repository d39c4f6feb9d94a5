r"""The verifier `maths`: whether an output's final answer and the row's are the same number, formula, set or word.

The answer of an output is what stands in its last `\boxed{}`, else behind its last `####`, else behind "answer is",
else in its last `$...$`, else its last number. Numbers are compared exactly, here; all else by sympy, in a process that
may be ended (`maths_program.py`). What can be equal follows math-verify, which TRL's `accuracy_reward` uses, with three
differences: numbers are not rounded to six digits, an answer that is no formula is compared as text, and an output
needs no LaTeX unless `needs_box`.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lifecycle.core.isolation.confine import Limits
from lifecycle.evals.verifiers.base import Verdict, Verifier, shared_pool
from lifecycle.evals.verifiers.formula_tokens import FormulaError
from lifecycle.evals.verifiers.formulas import Tree, parsed
from lifecycle.evals.verifiers.texts import NUMBER

PROGRAM = "lifecycle.evals.verifiers.maths_program:is_equal"
LIMITS = Limits(cpu_s=2, wall_s=30.0)
LONGEST = 1000  # characters of an answer; a longer one is no formula
LONGEST_END = 4000  # characters at the end in which an unmarked answer is sought: patterns may take their square
LARGEST_EXPONENT = 400
SAYS_ANSWER = re.compile(r"(?:answer|result)\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)
IN_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
SENTENCE_END = re.compile(r"\.(?:\s|$)")


class Maths(Verifier):
    """Settings of the comparison."""

    verifier: ClassVar[str] = "maths"

    needs_box: Annotated[bool, Field(description=r"an output without \boxed{} is wrong")] = False
    reasoning_end: Annotated[
        str | None, Field(min_length=1, description="only what follows its last place counts; without it 0: </think>")
    ] = None
    tolerance: Annotated[float, Field(ge=0, lt=1, description="relative difference that two numbers may have")] = 0.0

    def problem(self, answer: Any) -> str:
        """An answer must say something."""
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            return "" if isinstance(answer, int) or math.isfinite(answer) else f"the answer is {answer}"
        return super().problem(answer) or ("" if gold_answer(str(answer)) else "the answer is empty")

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output with an equal answer; 0 and a fault if the comparison exceeds its limits."""
        pairs = [(self._found(o), gold_answer(str(a))) for o, a in zip(outputs, answers, strict=True)]
        known = [found is not None and equal_numbers(found, gold, self.tolerance) for found, gold in pairs]
        open_ones = [place for place, same in enumerate(known) if same is None]
        items = [[*pairs[place], self.tolerance] for place in open_ones]
        results = dict(zip(open_ones, shared_pool(PROGRAM, LIMITS).map(items), strict=True))
        return [
            Verdict(float(results[place].value is True), results[place].failure)
            if same is None
            else Verdict(float(same))
            for place, same in enumerate(known)
        ]

    def _found(self, output: str) -> str | None:
        if self.reasoning_end is not None:
            _, end, output = output.rpartition(self.reasoning_end)
            if not end:
                return None
        return last_box(output) if self.needs_box else final_answer(output)


def gold_answer(text: str) -> str:
    """The answer of a row: marked as in an output, or all of a short text, or as in an output."""
    marked = last_box(text) or _behind_marks(text)
    short = text.strip()
    return marked or (short if len(short) < 200 and "\n" not in short else final_answer(text) or "")


def final_answer(text: str) -> str | None:
    """What an output says is its answer; None if it says nothing of the kind."""
    if marked := last_box(text) or _behind_marks(text):
        return marked
    text = text[-LONGEST_END:]
    if said := SAYS_ANSWER.findall(text):
        part = SENTENCE_END.split(said[-1].strip().strip("*").strip())[0]
        if part.strip():
            return part.strip().strip("*")
    if formulas := IN_DOLLARS.findall(text):
        return next(part for part in formulas[-1] if part).strip()
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, its braces in balance; None if there is none, or it is not closed."""
    begin = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if begin < 0:
        return None
    rest = text[begin:].partition("boxed" if text.startswith(r"\boxed", begin) else "fbox")[2].lstrip()
    if not rest.startswith("{"):
        return rest.split()[0].rstrip(".$") if rest.split() else None
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place].strip() or None
    return None


def _behind_marks(text: str) -> str:
    _, marks, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0].strip() if marks else ""


def equal_numbers(left: str, right: str, tolerance: float) -> bool | None:
    """Whether two answers are equal, if that can be seen without algebra; None if not."""
    if _as_text(left) == _as_text(right):
        return True
    trees = [_tree(left), _tree(right)]
    if None in trees:
        return False
    first, second = trees
    assert first is not None and second is not None
    if first == second:
        return True
    values = [rational(tree) for tree in trees if tree is not None]
    if None in values:
        return None
    return any(_near(a, b, tolerance) for a, b in meant(first, second, *values))


def meant(left: Tree, right: Tree, one: Any, other: Any) -> list[tuple[Any, Any]]:
    """Pairs of values of which one must be equal: beside a number, 50 % is a half, or 50 if percents were asked for."""
    if (left[0] == "%") == (right[0] == "%"):
        return [(one, other)]
    return [(one, other), (one * 100, other) if left[0] == "%" else (one, other * 100)]


def _near(one: Any, other: Any, tolerance: float) -> bool:
    return abs(one - other) <= Fraction(tolerance) * max(abs(one), abs(other))


def _as_text(answer: str) -> str:
    return " ".join(answer.casefold().rstrip(". ").split())


def _tree(answer: str) -> Tree | None:
    try:
        return parsed(answer) if len(answer) <= LONGEST else None
    except FormulaError:
        return None


def rational(tree: Tree) -> Fraction | None:
    """The value of a tree of numbers and the four operations; None for others, and for those too large to write out."""
    if tree[0] == "number":
        exponent = tree[1].lower().partition("e")[2]
        return None if exponent and abs(int(exponent[:6])) > LARGEST_EXPONENT else Fraction(tree[1])
    if tree[0] not in ("neg", "%", "+", "*", "/"):
        return None
    values = [rational(part) for part in tree[1:]]
    if None in values:
        return None
    first, *others = [value for value in values if value is not None]
    if not others:
        return -first if tree[0] == "neg" else first / 100
    if tree[0] == "/":
        return first / others[0] if others[0] else None
    return first + others[0] if tree[0] == "+" else first * others[0]
