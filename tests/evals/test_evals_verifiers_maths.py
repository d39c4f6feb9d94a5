"""Maths answers: what is equal, what is not, and laws of equality; math-verify's verdicts on the same pairs."""

import json
import random
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.evals.verifiers.formula_tokens import FormulaError
from lifecycle.evals.verifiers.formulas import parsed
from lifecycle.evals.verifiers.maths import Maths, equal_numbers, final_answer, gold_answer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rewards.json").read_text(encoding="utf-8"))
MATHS = Maths()
SAME = [
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"50\%", "0.5"), (r"50\%", "50"), ("1,234", "1234.0"), ("-0", "0"),
    ("x=5", "5"), (r"x \in (2,\infty)", "x>2"), ("1<x<3", "(1,3)"), (r"3 > x \ge 1", "[1,3)"), ("2x-y=1", "y=2x-1"),
    (r"2\pi", "6.283185307179586476925286766559"),
    (r"\sqrt{8}", r"2\sqrt{2}"), ("x^2+2x+1", "(x+1)^2"),
    (r"\sin^2 x + \cos^2 x", "1"), (r"|x|", r"\sqrt{x^2}"), (r"\text{(B)}", "B"), ("yes", "Yes"), ("$18", "18 dollars"),
    ("5 cm", "5"), (r"10\text{ m/s}^2", "10"), (r"3\cdot10^{-2}", "0.03"), ("5!", "120"), (r"\log_2 8", "3"),
    (r"e^{i\pi}", "-1"), (r"1\frac{1}{2}", "1.5"), ("1 1/2", "3/2"), (r"11\frac{3}{4}\%", "11.75%"),
    (r"\binom{5}{2}", "10"),
    (r"x=1\text{ or }x=2", r"\{2,1\}"), (r"2\pm\sqrt3", r"2-\sqrt3, 2+\sqrt3"),
    (r"(-\infty,1)\cup(2,3]", r"(2,3]\cup(-\infty,1)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"), (r"30^\circ", "30"),
    (r"\sqrt[3]{-8}", r"\sqrt[3]{-8}"),
    ("2xy", "2yx"), ("f(x)=x+1", "x+1"), ("Paris", "paris."),
    (r"\ln e^2", "2"), (r"\{3\}", "3"),
]  # fmt: skip
DIFFERENT = [
    ("1", "2"), (r"\frac12", "0.6"), ("x", "x^2"), ("|x|", "x"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("1,2", "1"),
    (r"\{1,2\}", r"\{1,3\}"), (r"50\%", "0.05"), (r"50\%", r"0.5\%"), ("x>2", "x<2"), ("x", "y"), ("((((", "1"),
    ("Paris", "London"), (r"\infty", r"-\infty"), ("1e9999999", "2"), ("3.14", r"\pi"), ("no", "on"),
    ("0.33", r"\frac13"),
    ("(a)", "(b)"), ("5 apples", "6"), (r"\frac{1}{0}", "1"), ("1 2", "12"), (r"\emptyset", "0"), ("x=1", "x=1,x=2"),
]  # fmt: skip


def boxed(pairs: list[tuple[str, str]]) -> list[float | None]:
    outputs = [rf"So it is \boxed{{{answer}}}." for answer, _ in pairs]
    return [verdict.score for verdict in MATHS.verdicts(outputs, [gold for _, gold in pairs])]


def test_the_same_answer_in_other_words_is_right_both_ways() -> None:
    assert dict(zip(SAME, boxed(SAME), strict=True)) == dict.fromkeys(SAME, 1.0)
    swapped = [(right, left) for left, right in SAME]
    assert dict(zip(swapped, boxed(swapped), strict=True)) == dict.fromkeys(swapped, 1.0)


def test_another_answer_is_wrong_both_ways() -> None:
    assert dict(zip(DIFFERENT, boxed(DIFFERENT), strict=True)) == dict.fromkeys(DIFFERENT, 0.0)
    swapped = [(right, left) for left, right in DIFFERENT]
    assert dict(zip(swapped, boxed(swapped), strict=True)) == dict.fromkeys(swapped, 0.0)


def test_a_formula_that_takes_too_long_is_wrong_and_said() -> None:
    first, second = MATHS.verdicts([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{\sqrt{4}}"], ["1", "2"])
    assert (first.score, first.fault) == (0.0, "CPU time")
    assert (second.score, second.fault) == (1.0, "")


def test_verdicts_agree_with_math_verify() -> None:
    outputs = [rf"So it is $\boxed{{{left}}}$." for left, _ in GOLDEN["pairs"]]
    ours = Maths(needs_box=True).verdicts(outputs, [f"${right}$" for _, right in GOLDEN["pairs"]])
    other = {tuple(pair): theirs for pair, our, theirs in zip(GOLDEN["pairs"], ours, GOLDEN["accuracy"], strict=True)
             if our.score != theirs}  # fmt: skip
    assert other == {(r"\frac12", r"\frac{1}{2}"): 0.0}  # which it reads as no fraction


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"), ("so\n#### 42\n", "42"),
        ("**Answer: 12 apples.**", "12 apples"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        ("we get $x=5$", "x=5"), ("costs 3 and 4.5.", "4.5"), ("nothing", None),
        (r"\boxed{", None), (r"\boxed 5 now", "5"), ("The final answer is: 7", "7"), ("is 3.5. Yes", "3.5"), ("", None),
        (r"it is \(2+2\)", "2+2"), (r"\fbox{a}", "a"), (r"\boxed{}", None),
    ],
)  # fmt: skip
def test_the_final_answer_of_an_output(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("piece", [r"\(", "$", r"\[", "answer is ", r"\boxed{", "1,", "{", "(", "- ", "**"])
def test_an_output_of_repetitions_ends(piece: str) -> None:
    long = piece * 100_000
    assert MATHS.verdicts([long, rf"\boxed{{{long}}}"], ["5", "5"])[1].score == 0.0


def test_settings() -> None:
    assert Maths(needs_box=True).verdicts(["it is 5", r"\boxed{5}"], ["5", "5"])[0].score == 0.0
    reasoned = Maths(reasoning_end="</think>")
    outputs = ["<think>5</think> it is 6", "<think>6</think> it is 5", "it is 6"]
    assert [verdict.score for verdict in reasoned.verdicts(outputs, ["6"] * 3)] == [1.0, 0.0, 0.0]
    near = Maths(tolerance=0.01)
    assert [verdict.score for verdict in near.verdicts(["3.14", "3.0"], [r"$\pi$"] * 2)] == [1.0, 0.0]
    assert near.verdicts(["99.5"], ["100"])[0].score == 1.0
    assert MATHS.problem(5) == ""
    assert MATHS.verdicts(["5"], [5])[0].score == 1.0
    assert "empty" in MATHS.problem("  ")
    assert MATHS.problem(float("nan")) == "the answer is nan"


NUMBERS = st.fractions(max_denominator=10**6)
TREES = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["x", "y", r"\pi", "2.5"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}+{p[1]})"),
        st.tuples(inner, inner).map(lambda p: rf"{p[0]} \cdot {p[1]}"),
        inner.map(lambda one: rf"\sqrt{{{one}}}"),
        inner.map(lambda one: f"{{{one}}}^2"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]}, {p[1]}]"),
    ),
    max_leaves=5,
)


@given(TREES)
def test_an_answer_equals_itself(answer: str) -> None:
    assert equal_numbers(answer, answer, 0.0) is True


@given(NUMBERS, NUMBERS, st.integers(1, 50))
def test_numbers_are_equal_if_and_only_if_their_values_are(left: Fraction, right: Fraction, factor: int) -> None:
    def written(value: Fraction, times: int) -> str:
        return rf"\frac{{{value.numerator * times}}}{{{value.denominator * times}}}"

    assert equal_numbers(written(left, factor), written(left, 1), 0.0) is True
    assert equal_numbers(written(left, factor), written(right, 1), 0.0) is (left == right)


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_refused(text: str) -> None:
    with suppress(FormulaError):
        assert parsed(text)
    gold_answer(text)
    final_answer(text)


def test_equality_of_formulas_is_symmetric_and_the_order_never_matters() -> None:
    draw = random.Random(0)
    pieces = [r"\sqrt{2}", r"\frac{x}{2}", "x^2", r"2\pi", "(x+1)", "y", r"\sin x", "3"]
    pairs = [("+".join(draw.choices(pieces, k=2)), "+".join(draw.choices(pieces, k=2))) for _ in range(60)]
    pairs += [("+".join(parts), "+".join(parts[::-1])) for parts in ([*draw.choices(pieces, k=3)] for _ in range(20))]
    forward = boxed(pairs)
    assert forward[-20:] == [1.0] * 20
    assert boxed([(right, left) for left, right in pairs]) == forward
    order = draw.sample(range(len(pairs)), len(pairs))
    assert boxed([pairs[place] for place in order]) == [forward[place] for place in order]
