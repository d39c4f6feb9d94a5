"""What the comparison with nanochat gives it to learn from, and how our own cost is read from the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.nanochat import CONFIG, STAGE, _passages, _per_step
from lifecycle.core.config import load_config
from lifecycle.stages.config import RunConfig


@given(st.text("a\n\r\u2028", max_size=60), st.integers(1, 9))
def test_passages_are_the_text_and_fit(text: str, size: int) -> None:
    passages = _passages(text, size)
    assert "".join(passages) == text and all(0 < len(passage) <= size for passage in passages)


def test_passages_end_with_lines() -> None:
    assert _passages("one\ntwo\nthree\n", 9) == ["one\ntwo\n", "three\n"]


def test_a_step_costs_what_the_records_after_the_first_say() -> None:
    records = [{"step": 10, "cpu_s": 9.0, "tokens_per_s": 1.0}, {"step": 20, "cpu_s": 4.0, "tokens_per_s": 50.0},
               {"step": 40, "cpu_s": 5.0, "tokens_per_s": 100.0}]  # fmt: skip
    assert _per_step(records, tokens=100) == pytest.approx((9 / 30, (10 * 2 + 20 * 1) / 30))


def test_its_run_is_one() -> None:
    config = load_config(RunConfig, CONFIG)
    assert list(config.train) == [STAGE] and [task.name for task in config.tasks] == ["text"]
