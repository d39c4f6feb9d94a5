"""The time left: at the speed of late, whatever came before, and always a number that can be shown."""

from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.progress import POINTS, TimeLeft


def after(*updates: tuple[float, int]) -> TimeLeft:
    """Updates at these seconds since the beginning."""
    left = TimeLeft(100.0)
    for at, done in updates:
        left.update(done, 100 + at)
    return left


def test_nobody_knows_before_the_second_update_or_without_a_total() -> None:
    assert after().seconds(10, 101) is None
    assert after((5, 1)).seconds(10, 105) is None
    assert after((5, 1), (10, 1)).seconds(10, 110) is None
    assert after((5, 1), (10, 2)).seconds(None, 110) is None
    assert after((5, 1), (10, 2)).seconds(10, 110) == 40


def test_what_was_there_already_and_what_was_compiled_do_not_count() -> None:
    found_at_once = after((0.1, 500), (0.9, 1000), (10, 1001), (20, 1002))
    assert abs((found_at_once.seconds(1010, 120) or 0) - 8 * 19.1 / 2) < 1e-6
    assert after((300, 1), (301, 2), (302, 3)).seconds(10, 402) == 7


def test_time_passes_between_updates_but_a_late_unit_stops_it() -> None:
    left = after((10, 1), (20, 2))
    assert [left.seconds(5, 120 + waited) for waited in (0, 4, 10, 500)] == [30, 26, 20, 20]


def test_a_speed_that_changed_long_ago_is_forgotten() -> None:
    slow, fast = [(60.0 * n, n) for n in range(1, 11)], [(600 + 0.5 * n, 10 + n) for n in range(1, 2401)]
    left = after(*slow, *fast)
    assert abs((left.seconds(2510, 1900) or 0) - 50) < 1
    assert len(left._points) <= 2 * POINTS + 2


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 10**6)), max_size=40), st.integers(0, 10**6), st.floats(0, 1e4)
)
def test_it_is_a_time_or_unknown(updates: list[tuple[float, int]], total: int, waited: float) -> None:
    times, counts = sorted(at for at, _ in updates), sorted(done for _, done in updates)
    seconds = after(*zip(times, counts, strict=True)).seconds(total, 100 + waited + (times[-1] if times else 0))
    assert seconds is None or 0 <= seconds < float("inf")
