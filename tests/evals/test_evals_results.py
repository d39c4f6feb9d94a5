"""Results: what is summarised, refused, written and read."""

from pathlib import Path
from typing import Any

import pytest

from lifecycle.evals.results import ResultError, ScoredExample, read_results, summarise, write_results


def test_a_result_is_read_as_it_was_written(tmp_path: Path, make_result: Any) -> None:
    results = [make_result("a", [1.0, 0.0, 1.0]), make_result("b", [1.5, 2.5], [10, 30], higher_is_better=False)]
    summaries = write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    assert summaries["b"]["mean"] == pytest.approx((1.5 * 10 + 2.5 * 30) / 40)
    assert "examples" not in summaries["a"]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3


def test_a_result_speaks(make_result: Any) -> None:
    assert str(make_result("a", [1.0, 0.0, 1.0])) == "a: exact 0.6667 [0.2077, 0.9385], n=3"


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([ScoredExample(id="a", score=1.0)], "at least two are needed"),
        ([ScoredExample(id="a", score=1.0), ScoredExample(id="a", score=0.0)], "same id"),
        ([ScoredExample(id="a", score=1.0), ScoredExample(id="b", score=float("inf"))], "not finite, first b"),
    ],
)
def test_scores_that_cannot_be_summarised(examples: list[ScoredExample], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        summarise("t", "generate", "exact", "d", examples)
