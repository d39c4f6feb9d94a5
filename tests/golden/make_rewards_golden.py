"""Writes `rewards.json`: values of TRL's own reward functions, and math-verify's verdicts on pairs of answers.

Run in an environment with trl and math-verify (0.9, latex2sympy2-extended 1.11): `python make_rewards_golden.py`.
"""
# pyrefly: ignore-errors[missing-import]

import json
import random
from pathlib import Path

from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    think_format_reward,
)

THOUGHTS = [
    "<think>a</think>b", "<think>a</think>", "<think>a", "a<think>b</think>", "<think>\na\n</think>\nb\n",
    "<think>a</think><think>b</think>", "<think></think>x", " <think>a</think>b", "<think>a</think></think>", "",
    "<think>a<think>b</think>", "<think>a</think>b<think>", "<THINK>a</THINK>",
]  # fmt: skip
PAIRS = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\frac{2}{4}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1,234", "1234"),
    ("(1,2)", "(1, 2)"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("x=5", "5"),
    (r"2\pi", r"2\pi"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("5", "6"),
    ("x", "y"),
    ("a+b", "b+a"),
    (r"\frac{1}{3}", "0.33"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\frac12", r"\frac{1}{2}"),
    (r"10\text{ cm}", "10"),
    (r"30^\circ", "30"),
    (r"\$18", "18"),
    (r"3\cdot 10^{-2}", "0.03"),
    ("2^{10}", "1024"),
    (r"[1,2)", r"[1,2)"),
    (r"[1,2)", r"[1,2]"),
    (r"(-\infty, 3)", r"(-\infty, 3)"),
    (r"(-\infty,1)\cup(2,3]", r"(-\infty,1)\cup(2,3]"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"50\%", r"50\%"),
    (r"50\%", r"60\%"),
    ("3.0", "3"),
    (r"\log_2 8", "3"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    (r"\dfrac{3}{4}", "0.75"),
    ("y = 2x + 1", "y = 2x+1"),
    ("100", "99.9"),
    (r"\sqrt[3]{8}", "2"),
    (r"\binom{5}{2}", "10"),
    (r"e^{2}", r"e^2"),
    (r"\sin(\pi/6)", r"\frac{1}{2}"),
    (r"2+\sqrt{3}", r"\sqrt{3}+2"),
    (r"\frac{x}{2}", r"0.5x"),
    (r"12\,000", "12000"),
    (r"|x|", "x"),
    (r"7!", "5040"),
    (r"\pi", "3.14"),
    (r"-5", "5"),
]


def main() -> None:
    draw = random.Random(0)
    ids = [[draw.randrange(4) for _ in range(draw.randrange(30))] for _ in range(40)]
    said = [[{"role": "assistant", "content": text}] for text in THOUGHTS]
    answers = [[{"role": "assistant", "content": rf"So it is $\boxed{{{left}}}$."}] for left, _ in PAIRS]
    golds = [f"${right}$" for _, right in PAIRS]
    golden = {
        "thoughts": THOUGHTS, "think_format": think_format_reward(said), "ids": ids,
        "soft_overlong": {
            f"{longest},{cache}": get_soft_overlong_punishment(longest, cache)(completion_ids=ids)
            for longest, cache in ((20, 8), (15, 15), (10, 0), (1, 1))
        },
        "repetition_penalty": {
            f"{size},{penalty}": get_repetition_penalty_reward(size, penalty)(completion_ids=ids)
            for size, penalty in ((1, -1.0), (2, -0.5), (3, -1.0), (40, -1.0))
        },
        "pairs": PAIRS, "accuracy": accuracy_reward(answers, golds),
        "cosine": get_cosine_scaled_reward(20)(answers[:10], golds[:10], ids[:10]),
    }  # fmt: skip
    Path(__file__).with_name("rewards.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
