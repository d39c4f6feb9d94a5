"""Reads the request log: usage and cost by model version and day, latencies, and how requests ended.

Reading never blocks the server's writing (WAL) and sees complete transactions only. Times are seconds since the epoch,
days are UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lifecycle.ops.database import session
from lifecycle.ops.request_log import SCHEMA

type Measure = Literal["latency_s", "first_token_s", "prompt_tokens", "completion_tokens", "device_s", "cost"]


@dataclass(frozen=True)
class RequestWindow:
    """A selection of requests: from `since` up to but not including `until`; `version` "" selects all versions."""

    since: float = 0.0
    until: float = 1e12
    version: str = ""


@dataclass(frozen=True)
class DailyUsage:
    """Totals of one version on one day; `refused` counts statuses 400 to 499, `errors` those from 500."""

    day: str
    version: str
    currency: str
    requests: int
    refused: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    device_s: float
    cost: float


def usage(path: Path, window: RequestWindow | None = None) -> list[DailyUsage]:
    """Totals per day, version and currency (it may have changed), oldest first."""
    query = f"""
        SELECT date(time, 'unixepoch') AS day, version, currency, count(*), sum(status BETWEEN 400 AND 499),
            sum(status >= 500), sum(prompt_tokens), sum(completion_tokens), sum(device_s), sum(cost)
        FROM requests WHERE {_WHERE} GROUP BY day, version, currency ORDER BY day, version, currency"""
    with session(path, SCHEMA) as db:
        return [DailyUsage(*row) for row in db.execute(query, _values(window))]


def percentiles(
    path: Path, measure: Measure, percents: Sequence[float] = (50, 95, 99), window: RequestWindow | None = None
) -> dict[float, float]:
    """Percentiles (linear between ranks) of a measure over answered requests; empty if there are none.

    Rejected and failed requests are left out: a quick rejection would make a slow server look fast.
    """
    assert measure in get_args(Measure.__value__)  # it becomes part of the query
    query = f"SELECT {measure} AS x FROM requests WHERE {_WHERE} AND status < 400 AND x IS NOT NULL"
    with session(path, SCHEMA) as db:
        values = [row[0] for row in db.execute(query, _values(window))]
    if not values:
        return {}
    return dict(zip(percents, map(float, np.percentile(values, list(percents))), strict=True))


def endings(path: Path, window: RequestWindow | None = None) -> dict[tuple[int, str], int]:
    """How many requests ended with each status and finish reason ("" if there was none)."""
    query = f"""
        SELECT status, coalesce(finish_reason, ''), count(*) FROM requests WHERE {_WHERE} GROUP BY 1, 2 ORDER BY 1, 2"""
    with session(path, SCHEMA) as db:
        return {(status, reason): count for status, reason, count in db.execute(query, _values(window))}


_WHERE = "time >= ? AND time < ? AND (? = '' OR version = ?)"


def _values(window: RequestWindow | None) -> tuple[float, float, str, str]:
    window = window or RequestWindow()
    return window.since, window.until, window.version, window.version
