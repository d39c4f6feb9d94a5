"""Times as rows, mails and archives have them."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.reading.times import iso_time


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05+02:00", "2024-01-02T01:04:05Z"),
        ("2024-01-02 03:04:05.678", "2024-01-02T03:04:05"),
        ("2019-04-25 12:57:54 UTC", "2019-04-25T12:57:54"),
        ("20240102T030405Z", "2024-01-02T03:04:05Z"),
        ("2024-01-02", "2024-01-02"),
        (" 2024/1/2 ", "2024-01-02"),
        ("2024-W01-2", "2024-01-02"),
        ("2024-05", "2024-05"),
        ("1899", "1899"),
        (2014, "2014"),
        ("Tue, 02 Jan 2024 03:04:05 +0200", "2024-01-02T01:04:05Z"),
        ("02 Jan 2024 03:04 GMT", "2024-01-02T03:04:00Z"),
        (1704164645, "2024-01-02T03:04:05Z"),
        (1704164645.9, "2024-01-02T03:04:05Z"),
        ("1704164645000", "2024-01-02T03:04:05Z"),
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3, tzinfo=timezone(timedelta(hours=-5))), "2024-01-02T08:00:00Z"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), None),
        ("yesterday", None),
        ("", None),
        ("2024-13", None),
        ("2024-02-30", None),
        ("Mon, 99 Jan 2024", None),
        (True, None),
        (12, None),
        (1e300, None),
        (10**400, None),
        (float("nan"), None),
        (None, None),
        ([2024], None),
    ],
)
def test_times_in_every_form(value: Any, time: str | None) -> None:
    assert iso_time(value) == time


@given(st.text(max_size=30) | st.floats() | st.integers() | st.datetimes())
def test_what_is_a_time_is_one_again(value: Any) -> None:
    time = iso_time(value)
    assert time is None or iso_time(time) == time


@given(st.datetimes(datetime(1980, 1, 1), datetime(2090, 1, 1)))
def test_seconds_and_words_mean_the_same(time: datetime) -> None:
    time = time.replace(tzinfo=UTC, microsecond=0)
    assert (
        iso_time(time.timestamp()) == iso_time(time.isoformat()) == iso_time(time.strftime("%d %b %Y %H:%M:%S +0000"))
    )
