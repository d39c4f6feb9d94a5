"""Costs: a batch's shares add up to what was spent."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.ops.cost import CostMeter, PriceConfig, allocate

TOKENS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 500), min_size=1).filter(lambda t: sum(t.values()))


@given(st.lists(st.tuples(st.floats(0, 100), TOKENS), max_size=20))
def test_shares_add_up(steps: list[tuple[float, dict[str, int]]]) -> None:
    meter = CostMeter()
    for core_s, tokens in steps:
        meter.step(core_s, tokens)
    total = sum(meter.finish(request) for request in "abcdef")
    assert total == pytest.approx(sum(core_s for core_s, _ in steps), rel=1e-9, abs=1e-9)


def test_shares_go_by_tokens() -> None:
    assert allocate(3.0, {"prefill": 8, "decode": 1, "idle": 0}) == pytest.approx(
        {"prefill": 8 / 3, "decode": 1 / 3, "idle": 0.0}
    )


def test_a_finished_request_is_forgotten() -> None:
    meter = CostMeter()
    meter.step(2.0, {"a": 1, "b": 1})
    assert meter.finish("a") == 1.0
    assert meter.finish("a") == 0.0
    assert meter.finish("never ran") == 0.0


def test_steps_and_finishes_of_two_threads() -> None:
    meter = CostMeter()
    stepper = threading.Thread(target=lambda: [meter.step(1.0, {"a": 1, str(i): 1}) for i in range(2000)])
    stepper.start()
    got = 0.0
    while stepper.is_alive():
        got += meter.finish("a")
    got += meter.finish("a")
    assert got == pytest.approx(1000.0)


def test_price() -> None:
    assert PriceConfig(core_hour=0.36).money(10.0) == pytest.approx(0.001)
    with pytest.raises(ConfigError, match="core_hour"):
        validate(PriceConfig, {"core_hour": -1})


def test_a_step_that_was_under_way_when_its_request_ended_leaves_nothing_behind() -> None:
    meter = CostMeter()
    meter.step(1.0, {"a": 1})
    assert meter.finish("a") == 1.0
    meter.step(1.0, {"a": 1, "b": 1})
    assert meter.finish("a") == 0.0 and meter.finish("b") == 0.5
