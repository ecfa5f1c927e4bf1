from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.replay.spans import LAST_MS, TIMESPANS, Span, zone_of

_NEW_YORK = ZoneInfo("America/New_York")


def _ms(*parts: int, zone: ZoneInfo | None = None) -> int:
    year, month, day, *rest = parts
    hour, minute = (*rest, 0, 0)[:2]
    return int(datetime(year, month, day, hour, minute, tzinfo=zone or UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("multiplier", "timespan", "start", "end"),
    [
        (1, "minute", _ms(2024, 5, 15, 10, 17), _ms(2024, 5, 15, 10, 18)),
        (15, "minute", _ms(2024, 5, 15, 10, 15), _ms(2024, 5, 15, 10, 30)),
        (4, "hour", _ms(2024, 5, 15, 8), _ms(2024, 5, 15, 12)),
        (1, "day", _ms(2024, 5, 15), _ms(2024, 5, 16)),
        (1, "week", _ms(2024, 5, 12), _ms(2024, 5, 19)),
        (1, "month", _ms(2024, 5, 1), _ms(2024, 6, 1)),
        (1, "quarter", _ms(2024, 4, 1), _ms(2024, 7, 1)),
        (1, "year", _ms(2024, 1, 1), _ms(2025, 1, 1)),
        (10, "year", _ms(2020, 1, 1), _ms(2030, 1, 1)),
    ],
)
def test_an_instant_lies_in_one_bar_of_the_grid(multiplier: int, timespan: str, start: int, end: int) -> None:
    """Wednesday 2024-05-15 10:17:30 UTC snaps to the bar that holds it; weeks begin on Sunday."""
    span = Span(multiplier=multiplier, timespan=timespan, zone="UTC")
    assert (span.floor(_ms(2024, 5, 15, 10, 17) + 30_000), span.after(_ms(2024, 5, 15, 10, 17))) == (start, end)


def test_days_of_new_york_have_23_and_25_hours() -> None:
    """A day follows the clocks of its zone through both changes."""
    span = Span(multiplier=1, timespan="day", zone="America/New_York")
    for day, hours in ((_ms(2024, 3, 10, 12), 23), (_ms(2024, 11, 3, 12), 25)):
        assert span.after(day) - span.floor(day) == hours * 3_600_000
    assert span.floor(_ms(2024, 5, 15, 3)) == _ms(2024, 5, 14, zone=_NEW_YORK)


@pytest.mark.parametrize(
    ("ticker", "zone"),
    [("C:EURUSD", "UTC"), ("X:BTCUSD", "UTC"), ("I:DAX", "America/New_York"), ("AAPL", "America/New_York"),
     ("O:SPY251219C00650000", "America/New_York")],
)  # fmt: skip
def test_dates_of_a_ticker_mean_its_zone(ticker: str, zone: str) -> None:
    """UTC for forex and crypto, New York for stocks, options and indices."""
    assert zone_of(ticker) == zone


@given(
    ms=st.integers(0, LAST_MS - 1),
    multiplier=st.integers(1, 40) | st.integers(1, 10**12),
    timespan=st.sampled_from(TIMESPANS),
    zone=st.sampled_from(["UTC", "America/New_York"]),
)
def test_bars_tile_the_time(ms: int, multiplier: int, timespan: str, zone: str) -> None:
    """Any instant lies within its bar, and the next bar begins where it ends."""
    span = Span(multiplier=multiplier, timespan=timespan, zone=zone)
    start, end = span.floor(ms), span.after(ms)
    assert start <= ms < end
    if 0 <= start < end < LAST_MS:
        assert (span.floor(end - 1), span.after(start), span.floor(end)) == (start, end, end)


@given(
    times=st.lists(st.integers(0, 60 * 366 * 1440), min_size=1, max_size=30, unique=True),
    multiplier=st.integers(1, 9),
    timespan=st.sampled_from(TIMESPANS[1:]),
)
def test_starts_of_many_are_the_floors_of_each(times: list[int], multiplier: int, timespan: str) -> None:
    """The fast way for columns agrees with the way for one instant."""
    span = Span(multiplier=multiplier * 7, timespan=timespan, zone="America/New_York")
    ts = np.array(sorted(times), np.int64) * 60_000
    assert span.starts(ts).tolist() == [span.floor(ms) for ms in ts.tolist()]


def test_no_bars_have_no_starts() -> None:
    """An empty column stays empty for every timespan."""
    for timespan in TIMESPANS:
        assert not len(Span(multiplier=1, timespan=timespan, zone="UTC").starts(np.empty(0, np.int64)))
