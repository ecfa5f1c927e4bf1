"""A market's hours as a chart is told of them, read as a chart reads them, against the hours that the worker keeps."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.market_hours import Hours, Market, hours, open_ranges
from service.ranges import Range, Ranges
from tests.unit.test_market_hours import NYSE_CLOSED, NYSE_HALF, XETRA_CLOSED, XETRA_HALF

DAY = timedelta(days=1)
MARKETS: tuple[Market, ...] = get_args(Market)
instants = st.datetimes(datetime(2005, 1, 1), datetime(2045, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - aware by `timezones`


def sessions(known: Hours, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """What a chart makes of a description: a session for every date from Monday to Friday, by the zone's clock."""
    zone = ZoneInfo(known.zone)
    for number in range((end - start).days + 5):
        day = start.date() + (number - 2) * DAY
        if day.weekday() > 4 or day in known.closed:
            continue
        text = known.early_session if day in known.early else known.session
        opens, closes = (time(int(part[:2]), int(part[2:])) for part in text.split("-"))
        first = day - DAY if closes <= opens else day
        yield tuple(datetime.combine(*one, zone).astimezone(UTC) for one in ((first, opens), (day, closes)))  # type: ignore[misc]


@given(market=st.sampled_from(MARKETS), start=instants, length=st.timedeltas(DAY / 24, 40 * DAY))
def test_what_is_described_is_open_and_nothing_else(market: Market, start: datetime, length: timedelta) -> None:
    """In every year, summer and winter, holidays and early closes included."""
    end = start + length
    known = hours(market, range(start.year - 1, end.year + 2))
    whole = Ranges([Range(start, end)])
    described = whole if known.session == "24x7" else Ranges(sessions(known, start, end)) & whole
    assert described == open_ranges(market, start, end)


@pytest.mark.parametrize(
    ("market", "zone", "session", "early_session", "shift"),
    [
        ("forex", "America/New_York", "1700-1700", "", timedelta(hours=7)),
        ("crypto", "Etc/UTC", "24x7", "", timedelta()),
        ("us_index", "America/New_York", "0930-1600", "0930-1300", timedelta()),
        ("us_stock", "America/New_York", "0400-2000", "0400-1700", timedelta()),
        ("german_index", "Europe/Berlin", "0900-1730", "0900-1400", timedelta()),
    ],
)
def test_an_ordinary_day_is_written_as_tradingview_writes_it(
    market: Market, zone: str, session: str, early_session: str, shift: timedelta
) -> None:
    known = hours(market, range(2026, 2027))
    assert (known.zone, known.session, known.early_session, known.shift) == (zone, session, early_session, shift)


@pytest.mark.parametrize(
    ("market", "closed", "early"),
    [
        ("us_index", NYSE_CLOSED, NYSE_HALF),
        ("us_stock", NYSE_CLOSED, NYSE_HALF),
        ("german_index", XETRA_CLOSED, XETRA_HALF),
    ],
)
def test_closed_and_early_dates_are_the_exchanges_own(market: Market, closed: set[date], early: set[date]) -> None:
    """Weekends are not among them: a chart knows these."""
    known = hours(market, range(2026, 2027))
    assert set(known.closed) == {day for day in closed if day.year == 2026 and day.weekday() < 5}
    assert set(known.early) == early


@pytest.mark.parametrize("market", ["forex", "crypto"])
def test_a_market_without_holidays_has_no_dates(market: Market) -> None:
    known = hours(market, range(2020, 2030))
    assert (known.closed, known.early) == ((), ())


def test_dates_ascend_over_the_years_asked_for_and_there_are_none_of_others() -> None:
    known = hours("us_index", range(2024, 2027))
    assert list(known.closed) == sorted(known.closed)
    assert {day.year for day in known.closed + known.early} == {2024, 2025, 2026}
    assert hours("us_index", range(0)).closed == ()
