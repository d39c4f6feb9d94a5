"""What the request log tells when it is read."""

from pathlib import Path

import numpy as np
import pytest

from lifecycle.ops.cost import DevicePrice
from lifecycle.ops.database import DatabaseError
from lifecycle.ops.monitor import RequestWindow, endings, percentiles, usage
from lifecycle.ops.request_log import RequestLog, RequestRecord

DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two days; version a has 100 answers of 1 to 100 ms, version b one answer, one refusal and one failure."""
    log = RequestLog(tmp_path / "log.sqlite", price=DevicePrice(hour=36.0))
    for i in range(100):
        log.write(
            RequestRecord(
                id=f"a{i}", time=DAY * (i % 2) + i, route="/v1/completions", version="a", status=200,
                finish_reason="stop", prompt_tokens=10, completion_tokens=i, latency_s=(i + 1) / 1000,
                first_token_s=0.001, device_s=0.5,
            )
        )  # fmt: skip
    for i, status in enumerate((200, 400, 500)):
        log.write(
            RequestRecord(
                id=f"b{i}", time=DAY + i, route="r", version="b", status=status, latency_s=i,
                finish_reason="length" if status == 200 else None,
            )
        )  # fmt: skip
    log.close()
    return log.path


def test_usage_by_day_and_version(path: Path) -> None:
    rows = usage(path)
    assert [(row.day, row.version, row.requests, row.refused, row.errors) for row in rows] == [
        ("1970-01-01", "a", 50, 0, 0), ("1970-01-02", "a", 50, 0, 0), ("1970-01-02", "b", 3, 1, 1),
    ]  # fmt: skip
    assert rows[0].prompt_tokens == 500
    assert rows[0].completion_tokens + rows[1].completion_tokens == sum(range(100))
    assert rows[0].device_s == pytest.approx(25.0)
    assert rows[0].cost == pytest.approx(0.25)
    assert rows[0].currency == "USD"


def test_windows(path: Path) -> None:
    assert [row.day for row in usage(path, RequestWindow(until=DAY))] == ["1970-01-01"]
    assert [row.version for row in usage(path, RequestWindow(since=DAY, version="b"))] == ["b"]
    assert usage(path, RequestWindow(since=9 * DAY)) == []


def test_percentiles_are_numpys(path: Path) -> None:
    expected = np.percentile(np.arange(1, 101) / 1000, [50, 95, 99])
    result = percentiles(path, "latency_s", window=RequestWindow(version="a"))
    assert list(result) == [50, 95, 99]
    assert list(result.values()) == pytest.approx(list(expected))
    assert percentiles(path, "completion_tokens", [100], RequestWindow(version="a")) == {100: 99.0}


def test_percentiles_leave_out_what_was_not_answered(path: Path) -> None:
    assert percentiles(path, "latency_s", [50], RequestWindow(version="b")) == {50: 0.0}
    assert percentiles(path, "first_token_s", [50], RequestWindow(version="b")) == {}


def test_endings(path: Path) -> None:
    assert endings(path, RequestWindow(version="b")) == {(200, "length"): 1, (400, ""): 1, (500, ""): 1}
    assert endings(path)[200, "stop"] == 100


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no request log here"):
        usage(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
