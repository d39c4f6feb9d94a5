"""Times as ISO 8601, from what rows, mails and front matter have: dates in words and numbers, seconds since 1970."""

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_PART = re.compile(r"\d{4}(-(0[1-9]|1[0-2]))?")  # a year, or a month
_NUMBER = re.compile(r"\d{9,13}(\.\d+)?")
_SLASHES = re.compile(r"(\d{4})/(\d\d?)/(\d\d?)")
_YEARS = range(1000, 3000)
_FIRST, _LAST = 100_000_000, 4_102_444_800  # 1973 and 2100, in seconds since 1970


def iso_time(value: Any) -> str | None:
    """A time as ISO 8601, in UTC if its zone is known (`2024-01-02T03:04:05Z`); a date, month or year alone stays one.
    None for what is no time."""
    match value:
        case bool():
            return None
        case datetime():
            return _iso(value)
        case date():
            return value.isoformat()
        case int() | float():
            return _of_number(value)
        case str():
            return _of_text(value.strip())
    return None


def _of_number(value: float) -> str | None:
    if value in _YEARS:
        return str(int(value))
    if not _FIRST <= value <= 1000 * _LAST:  # of larger integers there is no float
        return None
    seconds = value / 1000 if value > _LAST else value
    if not _FIRST <= seconds <= _LAST:
        return None
    return _iso(datetime.fromtimestamp(int(seconds), UTC))


def _of_text(text: str) -> str | None:
    if _PART.fullmatch(text):
        return text
    if _NUMBER.fullmatch(text):
        return _of_number(float(text))
    text = _SLASHES.sub(lambda found: f"{found[1]}-{found[2]:0>2}-{found[3]:0>2}", text).removesuffix(" UTC")
    try:
        found = datetime.fromisoformat(text)
        is_date = len(text) == len("2024-01-02") and "T" not in text  # also `2024-W01-2`, its week and day
        return found.date().isoformat() if is_date else _iso(found)
    except ValueError:
        pass
    try:
        return _iso(parsedate_to_datetime(text))
    except (ValueError, OverflowError, IndexError, TypeError):  # its ways to refuse
        return None


def _iso(time: datetime) -> str | None:
    time = time.replace(microsecond=0)
    if time.tzinfo is None:
        return time.isoformat()
    try:
        return time.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
    except OverflowError:  # of the years 1 and 9999
        return None
