"""Costs: a batch's shares add up to what was spent."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.ops.cost import CostMeter, DevicePrice, PriceConfig, allocate

TOKENS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 500), min_size=1).filter(lambda t: sum(t.values()))


@given(st.lists(st.tuples(st.floats(0, 100), TOKENS), max_size=20))
def test_shares_add_up(dispatches: list[tuple[float, dict[str, int]]]) -> None:
    meter = CostMeter()
    for device_s, tokens in dispatches:
        meter.charge(device_s, tokens)
    total = sum(meter.finish(request) for request in "abcdef")
    assert total == pytest.approx(sum(device_s for device_s, _ in dispatches), rel=1e-9, abs=1e-9)


def test_shares_go_by_tokens() -> None:
    assert allocate(3.0, {"prefill": 8, "decode": 1, "idle": 0}) == pytest.approx(
        {"prefill": 8 / 3, "decode": 1 / 3, "idle": 0.0}
    )


def test_a_finished_request_is_forgotten() -> None:
    meter = CostMeter()
    meter.charge(2.0, {"a": 1, "b": 1})
    assert meter.finish("a") == 1.0
    assert meter.finish("a") == 0.0
    assert meter.finish("never ran") == 0.0


def test_two_engines_charge_one_meter_while_requests_finish() -> None:
    meter, done = CostMeter(), threading.Barrier(3)

    def dispatch(engine: str) -> None:
        for i in range(1000):
            meter.charge(1.0, {f"{engine}{i}": 1, f"{engine}{i + 1}": 1})
        done.wait()

    threads = [threading.Thread(target=dispatch, args=(engine,)) for engine in "ab"]
    for thread in threads:
        thread.start()
    assert [meter.finish(f"other{i}") for i in range(100)] == [0.0] * 100
    done.wait()
    for engine in "ab":
        assert sum(meter.finish(f"{engine}{i}") for i in range(1001)) == pytest.approx(1000.0)


def test_prices() -> None:
    price = PriceConfig(core_hour=0.36)
    assert price.money(10.0) == pytest.approx(0.001)
    assert price.of_device("cpu", num_cores=4) == DevicePrice("USD", 4 * 0.36)
    assert price.of_device("tpu", num_cores=4) == DevicePrice("USD", 0.0)
    set_price = PriceConfig(device_hour=3.6, currency="EUR")
    assert set_price.of_device("cpu", 4) == set_price.of_device("gpu", 4) == DevicePrice("EUR", 3.6)
    assert DevicePrice(hour=3.6).money(10.0) == pytest.approx(0.01)
    with pytest.raises(ConfigError, match="core_hour"):
        validate(PriceConfig, {"core_hour": -1})


def test_a_dispatch_during_which_its_request_ended_leaves_nothing_behind() -> None:
    meter = CostMeter()
    meter.charge(1.0, {"a": 1})
    assert meter.finish("a") == 1.0
    meter.charge(1.0, {"a": 1, "b": 1})
    assert meter.finish("a") == 0.0 and meter.finish("b") == 0.5
