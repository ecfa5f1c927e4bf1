"""Market hours, on days whose hours are known, and held against a count of minutes by the clocks of the two cities."""

from datetime import UTC, date, datetime, time, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.instruments import SEED, AssetType
from service.market_hours import Market, is_open, last_open, market_of, next_open, open_ranges, open_time
from service.ranges import Range, Ranges
from service.timeframes import EPOCH

NOTHING = timedelta()
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MARKETS: tuple[Market, ...] = get_args(Market)
NEW_YORK, BERLIN = ZoneInfo("America/New_York"), ZoneInfo("Europe/Berlin")

NYSE_CLOSED = {
    date(2026, 1, 1),
    date(2026, 1, 19),  # Martin Luther King Jr. Day
    date(2026, 2, 16),  # Washington's Birthday
    date(2026, 4, 3),  # Good Friday
    date(2026, 5, 25),  # Memorial Day
    date(2026, 6, 19),  # Juneteenth
    date(2026, 7, 3),  # Independence Day, a Saturday
    date(2026, 9, 7),  # Labor Day
    date(2026, 11, 26),  # Thanksgiving
    date(2026, 12, 25),
    date(2027, 1, 1),
}
NYSE_HALF = {date(2026, 11, 27), date(2026, 12, 24)}
XETRA_CLOSED = {
    date(2026, 1, 1),
    date(2026, 4, 3),  # Good Friday
    date(2026, 4, 6),  # Easter Monday
    date(2026, 5, 1),  # Labour Day
    date(2026, 12, 24),
    date(2026, 12, 25),
    date(2026, 12, 31),
    date(2027, 1, 1),
}
XETRA_HALF = {date(2026, 12, 30)}
"""The exchanges' own published days of 2026: what the calendar package says is not taken for granted."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def hours_of(market: Market, day: str) -> list[str]:
    """The open time of a UTC day, as `HH:MM-HH:MM`; an end at midnight is 00:00."""
    start = utc(day)
    return [f"{part.start:%H:%M}-{part.end:%H:%M}" for part in open_ranges(market, start, start + DAY)]


def open_by_the_clock(market: Market, at: datetime) -> bool:
    """The rules once more, each in one line, for 2026."""
    local = at.astimezone(BERLIN if market == "german_index" else NEW_YORK)
    day, now, weekday = local.date(), local.time(), local.weekday() < 5
    match market:
        case "crypto":
            return True
        case "forex":
            return {4: now < time(17), 5: False, 6: now >= time(17)}.get(local.weekday(), True)
        case "german_index":
            close = time(14) if day in XETRA_HALF else time(17, 30)
            return weekday and day not in XETRA_CLOSED and time(9) <= now < close
        case "us_index":
            close = time(13) if day in NYSE_HALF else time(16)
            return weekday and day not in NYSE_CLOSED and time(9, 30) <= now < close
        case "us_stock":
            close = time(17) if day in NYSE_HALF else time(20)
            return weekday and day not in NYSE_CLOSED and time(4) <= now < close


def count(market: Market, start: datetime, end: datetime) -> timedelta:
    """Open time, minute by minute."""
    minutes = (start + number * MINUTE for number in range((end - start) // MINUTE))
    return sum(open_by_the_clock(market, at) for at in minutes) * MINUTE


markets = st.sampled_from(MARKETS)
in_2026 = st.integers(0, 365 * 1440 - 1).map(lambda minute: utc("2026-01-01") + minute * MINUTE)
instants = st.datetimes(datetime(2005, 1, 1), datetime(2045, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - aware by `timezones`
spans = st.tuples(instants, st.timedeltas(-DAY, 40 * DAY)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))


# Whose hours an instrument keeps


@pytest.mark.parametrize(
    ("asset_type", "ticker", "market"),
    [
        ("forex", "C:EURUSD", "forex"),
        ("commodity", "C:XAUUSD", "forex"),
        ("crypto", "X:BTCUSD", "crypto"),
        ("stock", "AAPL", "us_stock"),
        ("index", "I:SPX", "us_index"),
        ("index", "I:DAX", "german_index"),
        ("index", "I:UNHEARD", "us_index"),
    ],
)
def test_an_instrument_keeps_the_hours_of_its_kind(asset_type: AssetType, ticker: str, market: Market) -> None:
    """Metals keep those of forex; an index is American unless it is known as German."""
    assert market_of(asset_type, ticker) == market


def test_every_seeded_instrument_has_a_market() -> None:
    assert {market_of(one.asset_type, one.ticker) for one in SEED} == {"forex", "crypto", "us_index", "german_index"}


# Known days


@pytest.mark.parametrize(
    ("market", "winter", "summer"),
    [
        ("us_index", ["14:30-21:00"], ["13:30-20:00"]),
        ("us_stock", ["00:00-01:00", "09:00-00:00"], ["08:00-00:00"]),
        ("german_index", ["08:00-16:30"], ["07:00-15:30"]),
        ("forex", ["00:00-00:00"], ["00:00-00:00"]),
        ("crypto", ["00:00-00:00"], ["00:00-00:00"]),
    ],
)
def test_an_ordinary_day_moves_in_utc_with_the_season(market: Market, winter: list[str], summer: list[str]) -> None:
    assert hours_of(market, "2026-01-14") == winter
    assert hours_of(market, "2026-07-15") == summer


@pytest.mark.parametrize(
    ("day", "us_index", "german_index"),
    [
        ("2026-03-06", "14:30-21:00", "08:00-16:30"),
        ("2026-03-09", "13:30-20:00", "08:00-16:30"),  # New York went forward on March 8
        ("2026-03-30", "13:30-20:00", "07:00-15:30"),  # Berlin on March 29
        ("2026-10-26", "13:30-20:00", "08:00-16:30"),  # Berlin went back on October 25
        ("2026-11-02", "14:30-21:00", "08:00-16:30"),  # New York on November 1
    ],
)
def test_each_city_changes_its_clocks_on_its_own_day(day: str, us_index: str, german_index: str) -> None:
    assert hours_of("us_index", day) == [us_index]
    assert hours_of("german_index", day) == [german_index]


@pytest.mark.parametrize(
    ("friday", "closes", "sunday", "opens"),
    [
        ("2026-01-09", "22:00", "2026-01-11", "22:00"),
        ("2026-07-10", "21:00", "2026-07-12", "21:00"),
        ("2026-03-06", "22:00", "2026-03-08", "21:00"),  # the clocks change on that Sunday morning
        ("2026-10-30", "21:00", "2026-11-01", "22:00"),
    ],
)
def test_forex_rests_from_friday_to_sunday_1700_new_york(friday: str, closes: str, sunday: str, opens: str) -> None:
    assert hours_of("forex", friday) == [f"00:00-{closes}"]
    assert hours_of("forex", sunday) == [f"{opens}-00:00"]
    assert open_ranges("forex", utc(f"{friday} {closes}"), utc(f"{sunday} {opens}")) == Ranges()


def test_forex_has_no_holidays() -> None:
    """Quotes may come on a holiday, and asking for them costs a call: Christmas and New Year are open."""
    for day in ("2026-12-24", "2024-12-25", "2025-01-01", "2026-04-02", "2026-11-26"):
        assert hours_of("forex", day) == ["00:00-00:00"]


@pytest.mark.parametrize(
    ("day", "us_index", "us_stock", "german_index"),
    [
        ("2026-11-26", [], ["00:00-01:00"], ["08:00-16:30"]),  # Thanksgiving; until 01:00 it is Wednesday in New York
        ("2026-11-27", ["14:30-18:00"], ["09:00-22:00"], ["08:00-16:30"]),
        ("2026-04-03", [], [], []),  # Good Friday
        ("2026-04-06", ["13:30-20:00"], ["08:00-00:00"], []),  # Easter Monday
        ("2026-12-24", ["14:30-18:00"], ["00:00-01:00", "09:00-22:00"], []),
        ("2026-12-25", [], [], []),
        (
            "2026-12-30",
            ["14:30-21:00"],
            ["00:00-01:00", "09:00-00:00"],
            ["08:00-13:00"],
        ),  # Frankfurt's last of the year
        ("2026-12-31", ["14:30-21:00"], ["00:00-01:00", "09:00-00:00"], []),
        ("2021-12-31", ["14:30-21:00"], ["00:00-01:00", "09:00-00:00"], []),  # New Year's Day was a Saturday
        ("2025-01-09", [], ["00:00-01:00"], ["08:00-16:30"]),  # a day of mourning
        ("2026-05-01", ["13:30-20:00"], ["08:00-00:00"], []),  # Labour Day
        ("2026-05-16", [], [], []),  # a Saturday
    ],
)
def test_exchanges_keep_their_holidays_and_half_days(
    day: str, us_index: list[str], us_stock: list[str], german_index: list[str]
) -> None:
    """An index ends at 13:00 on a half day of New York, stocks at 17:00 with their extended hours."""
    found = hours_of("us_index", day), hours_of("us_stock", day), hours_of("german_index", day)
    assert found == (us_index, us_stock, german_index)


@pytest.mark.parametrize(("market", "year"), [("german_index", 2010), ("german_index", 2150), ("us_index", 2150)])
def test_weekdays_of_a_year_without_a_calendar_are_open(market: Market, year: int) -> None:
    """Where the calendar ends, asking in vain is the cheaper mistake."""
    weekdays = [day for number in range(365) if (day := date(year, 1, 1) + number * DAY).weekday() < 5]
    found = open_ranges(market, datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))
    assert [part.start.date() for part in found] == weekdays


# Spans


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(
    "first", ["2026-03-06", "2026-03-27", "2026-04-02", "2026-10-23", "2026-10-30", "2026-11-25", "2026-12-29"]
)
def test_open_time_is_the_count_of_open_minutes_where_it_is_hard(market: Market, first: str) -> None:
    """The changes of the clocks, Easter, Thanksgiving and New Year."""
    start, end = utc(first), utc(first) + 4 * DAY
    assert open_time(market, start, end) == count(market, start, end)


@given(markets, in_2026, st.integers(0, 3 * 1440))
def test_open_time_is_the_count_of_open_minutes(market: Market, start: datetime, minutes: int) -> None:
    end = min(start + minutes * MINUTE, utc("2027-01-04"))
    assert open_time(market, start, end) == count(market, start, end)


@given(markets, st.lists(instants, min_size=3, max_size=3).map(sorted))
def test_open_time_is_additive(market: Market, ordered: list[datetime]) -> None:
    """Nothing is lost or counted twice where a span is cut, be it within a minute, a session or a year."""
    start, middle, end = ordered
    assert open_time(market, start, end) == open_time(market, start, middle) + open_time(market, middle, end)


@given(markets, spans)
def test_open_ranges_lie_within_the_span_and_are_as_long_as_the_open_time(
    market: Market, span: tuple[datetime, datetime]
) -> None:
    start, end = (at.replace(second=0, microsecond=0) for at in span)
    found = open_ranges(market, start, end)
    assert found - Ranges.of(start, end) == Ranges()
    assert found.length == open_time(market, start, end)


def test_instants_count_as_the_minute_they_are_in() -> None:
    """So that the many questions of one minute are one question."""
    opening = utc("2026-01-14 14:30")
    assert open_time("us_index", opening, opening + timedelta(seconds=59)) == NOTHING
    assert open_time("us_index", opening + timedelta(seconds=59), opening + timedelta(seconds=61)) == MINUTE


def test_open_ranges_are_cut_where_the_span_is() -> None:
    start, end = utc("2026-01-14 15:00:30"), utc("2026-01-15 15:00:30")
    assert list(open_ranges("us_index", start, end)) == [
        Range(start, utc("2026-01-14 21:00")),
        Range(utc("2026-01-15 14:30"), end),
    ]


@pytest.mark.parametrize("market", MARKETS)
def test_an_empty_or_reversed_span_holds_no_open_time(market: Market) -> None:
    now = utc("2026-01-14 15:00")
    for start in (now, now + HOUR):
        assert open_time(market, start, now) == NOTHING
        assert open_ranges(market, start, now) == Ranges()


def test_crypto_is_open_always() -> None:
    now = utc("2026-01-14 15:00")
    assert open_ranges("crypto", EPOCH, now) == Ranges.of(EPOCH, now)
    assert open_time("crypto", EPOCH, now) == now - EPOCH


def test_years_add_up() -> None:
    """2025 had 250 days of trading in New York, three of them half days."""
    assert open_time("us_index", utc("2025-01-01"), utc("2026-01-01")) == 250 * 6.5 * HOUR - 3 * 3 * HOUR


# Instants


@given(markets, instants)
def test_the_last_open_time_ends_at_an_instant_before_which_it_is_open(market: Market, at: datetime) -> None:
    """And between it and the instant asked for there is no open time."""
    last = last_open(market, at)
    assert last <= at
    assert is_open(market, last - timedelta.resolution)
    assert open_ranges(market, last, at) == Ranges()


@given(markets, instants)
def test_the_next_open_time_starts_at_an_instant_when_it_is_open(market: Market, at: datetime) -> None:
    """And between the instant asked for and it there is no open time."""
    opening = next_open(market, at)
    assert opening >= at
    assert is_open(market, opening)
    assert open_ranges(market, at, opening) == Ranges()


@given(markets, in_2026)
def test_a_market_is_open_when_the_clock_of_its_city_says_so(market: Market, at: datetime) -> None:
    assert is_open(market, at) == open_by_the_clock(market, at)
    assert is_open(market, at) == (open_time(market, at, at + MINUTE) == MINUTE)
    assert is_open(market, at) == (next_open(market, at) == at)


def test_a_session_is_half_open() -> None:
    """At its close a market is closed, and has been open up to that very instant."""
    opens, closes = utc("2026-01-14 14:30"), utc("2026-01-14 21:00")
    assert is_open("us_index", opens)
    assert not is_open("us_index", closes)
    assert last_open("us_index", opens) == utc("2026-01-13 21:00")
    assert last_open("us_index", closes) == closes
    assert next_open("us_index", opens) == opens
    assert next_open("us_index", closes) == utc("2026-01-15 14:30")


@pytest.mark.parametrize(
    ("market", "last", "following"),
    [
        ("us_index", "2025-12-31 21:00", "2026-01-02 14:30"),
        ("us_stock", "2026-01-01 01:00", "2026-01-02 09:00"),
        ("german_index", "2025-12-30 13:00", "2026-01-02 08:00"),
    ],
)
@pytest.mark.parametrize("at", ["2026-01-01 01:00", "2026-01-01 12:00", "2026-01-02 07:59:59"])
def test_a_closed_new_year_lies_between_two_sessions(market: Market, last: str, following: str, at: str) -> None:
    assert last_open(market, utc(at)) == utc(last)
    assert next_open(market, utc(at)) == utc(following)


@pytest.mark.parametrize("market", ["forex", "crypto"])
def test_an_open_new_year_is_no_boundary(market: Market) -> None:
    new_year = utc("2026-01-01")
    assert is_open(market, new_year)
    assert last_open(market, new_year) == next_open(market, new_year) == new_year
    assert len(open_ranges(market, new_year - HOUR, new_year + HOUR)) == 1
