"""When a market is open, so that no call is spent on a closed one, and lag counts open time only.

It decides when to ask, never what to keep: a wrong calendar costs a delay or a call, never a bar. Instants are aware
UTC, sessions half-open. A session is set in local wall time, so it moves in UTC when the clocks of its own city change.

Forex and metals have a week and no holidays: quotes may come on a holiday, and thin days (December 25, January 1)
count as open. The days of the exchanges come from the package `holidays`. It has no holidays for years that it does not
know (Frankfurt before 2016): their weekdays count as open.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Literal
from zoneinfo import ZoneInfo

import holidays
import msgspec

from service.instruments import AssetType
from service.ranges import Range, Ranges
from service.timeframes import Timeframe

Market = Literal["forex", "crypto", "us_index", "german_index", "us_stock"]
"""Instruments that are open at the same times; metals count as forex."""

_NEW_YORK = "America/New_York"
_GERMAN_INDICES = frozenset({"I:DAX"})
_DAY = timedelta(days=1)
_SATURDAY, _SUNDAY = 5, 6
_FOREX_TURNS = time(17)
"""When the week of forex starts on Sunday and ends on Friday, New York."""
_FOREX_WEEK = timedelta(days=5)


class _Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """The hours of a weekday, in the exchange's local time."""

    code: str
    """Market identifier (ISO 10383) of the calendar of its holidays."""
    zone: str
    opens: time
    closes: time
    closes_early: time
    half_days: bool
    """Whether the calendar lists the days that close early; if not, that is the last trading day of the year."""


_EXCHANGES: dict[Market, _Exchange] = {
    "us_index": _Exchange(
        code="XNYS", zone=_NEW_YORK, opens=time(9, 30), closes=time(16), closes_early=time(13), half_days=True
    ),
    "us_stock": _Exchange(
        code="XNYS", zone=_NEW_YORK, opens=time(4), closes=time(20), closes_early=time(17), half_days=True
    ),
    "german_index": _Exchange(
        code="XETR", zone="Europe/Berlin", opens=time(9), closes=time(17, 30), closes_early=time(14), half_days=False
    ),
}
"""Those with holidays. Stocks include their extended hours."""


class _Year(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions of a market that start within one year, ordered, none overlapping the next."""

    sessions: tuple[Range, ...]
    starts: tuple[datetime, ...]
    before: tuple[timedelta, ...]
    """For each session the total length of those before it."""

    def open_before(self, at: datetime) -> timedelta:
        """Open time from the start of the year's first session to `at` (exclusive)."""
        place = bisect_left(self.starts, at) - 1
        if place < 0:
            return timedelta()
        session = self.sessions[place]
        return self.before[place] + min(at, session.end) - session.start

    def touching(self, start: datetime, end: datetime) -> tuple[Range, ...]:
        """The sessions that may overlap `[start, end)`."""
        return self.sessions[max(bisect_right(self.starts, start) - 1, 0) : bisect_left(self.starts, end)]


def market_of(asset_type: AssetType, ticker: str) -> Market:
    """Whose hours an instrument keeps; ticker: the provider's spelling. An index not known as German is American."""
    match asset_type:
        case "forex" | "commodity":
            return "forex"
        case "crypto":
            return "crypto"
        case "stock":
            return "us_stock"
        case "index":
            return "german_index" if ticker in _GERMAN_INDICES else "us_index"


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """A market's hours as a chart is told of them: the ordinary day, and the dates that are otherwise."""

    zone: str
    """IANA name; by its clock are all times and dates."""
    session: str
    """As TradingView writes it: `24x7`, or HHMM-HHMM of a date from Monday to Friday; unless its end is later than its
    start, it begins on the day before."""
    shift: timedelta = timedelta()
    """How long before its midnight a trading day begins."""
    closed: tuple[date, ...] = ()
    """Dates from Monday to Friday without a session."""
    early: tuple[date, ...] = ()
    """Dates that close early."""
    early_session: str = ""
    """Their session; empty where a market has none."""


def hours(market: Market, years: range) -> Hours:
    """A market's hours, with the closed and the early dates of some calendar years."""
    if market == "crypto":
        return Hours(zone="Etc/UTC", session="24x7")
    if market == "forex":
        evening = _DAY - timedelta(hours=_FOREX_TURNS.hour, minutes=_FOREX_TURNS.minute)
        return Hours(zone=_NEW_YORK, session=_session(_FOREX_TURNS, _FOREX_TURNS), shift=evening)
    exchange = _EXCHANGES[market]
    special = [_special_dates(market, year) for year in years]
    return Hours(
        zone=exchange.zone,
        session=_session(exchange.opens, exchange.closes),
        closed=tuple(day for closed, _ in special for day in closed),
        early=tuple(day for _, early in special for day in early),
        early_session=_session(exchange.opens, exchange.closes_early),
    )


def open_ranges(market: Market, start: datetime, end: datetime) -> Ranges:
    """The open time within `[start, end)`; empty where start >= end."""
    if start >= end:
        return Ranges()
    return Ranges(
        (max(session.start, start), min(session.end, end))
        for year in _years(market, start, end)
        for session in year.touching(start, end)
    )


def open_time(market: Market, start: datetime, end: datetime) -> timedelta:
    """How long the market is open within `[start, end)`, both taken as the minute they are in; 0 where start >= end.

    Its cost depends on the years that the span touches, not on its sessions, and equal questions are answered once.
    """
    return _open_time(market, Timeframe.M1.floor(start), Timeframe.M1.floor(end))


def is_open(market: Market, at: datetime) -> bool:
    """Whether an instant is within a session (its start included, its end not)."""
    return at < _last_started(market, at).end


def last_open(market: Market, at: datetime) -> datetime:
    """The end (exclusive) of the last open time up to `at`: `at` itself while the market is open just before it."""
    return min(at, _last_started(market, at - timedelta.resolution).end)


def next_open(market: Market, at: datetime) -> datetime:
    """`at` itself if the market is open then, else the start of its next session."""
    if is_open(market, at):
        return at
    starts = _year(market, at.year).starts
    place = bisect_right(starts, at)
    return starts[place] if place < len(starts) else _year(market, at.year + 1).starts[0]


@lru_cache(maxsize=4096)
def _open_time(market: Market, start: datetime, end: datetime) -> timedelta:
    if start >= end:
        return timedelta()
    return sum((year.open_before(end) - year.open_before(start) for year in _years(market, start, end)), timedelta())


def _last_started(market: Market, at: datetime) -> Range:
    """The latest session that starts at or before an instant."""
    year = _year(market, at.year)
    place = bisect_right(year.starts, at) - 1
    return year.sessions[place] if place >= 0 else _year(market, at.year - 1).sessions[-1]


def _years(market: Market, start: datetime, end: datetime) -> Iterator[_Year]:
    """All years with a session in `[start, end)`; the first one's may reach in over New Year."""
    return (_year(market, year) for year in range(start.year - 1, end.year + 1))


@lru_cache(maxsize=256)
def _year(market: Market, year: int) -> _Year:
    sessions = tuple(_sessions(market, year))
    return _Year(
        sessions=sessions,
        starts=tuple(session.start for session in sessions),
        before=tuple(accumulate((session.length for session in sessions[:-1]), initial=timedelta())),
    )


def _sessions(market: Market, year: int) -> Iterable[Range]:
    """The sessions that start within a year: local and UTC year are the same, since none starts near midnight."""
    if market == "crypto":
        return [Range(datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))]
    if market == "forex":
        sundays = (day for day in _days(year) if day.weekday() == _SUNDAY)
        return (_local(_NEW_YORK, day, _FOREX_TURNS, day + _FOREX_WEEK, _FOREX_TURNS) for day in sundays)
    return _exchange_sessions(_EXCHANGES[market], year)


@lru_cache(maxsize=256)
def _special_dates(market: Market, year: int) -> tuple[tuple[date, ...], tuple[date, ...]]:
    """The dates of an exchange's year without a session, weekends aside, and those that close early."""
    exchange = _EXCHANGES[market]
    clock, sessions = ZoneInfo(exchange.zone), _year(market, year).sessions
    closes = {one.start.astimezone(clock).date(): one.end.astimezone(clock).time() for one in sessions}
    closed = tuple(day for day in _days(year) if day.weekday() < _SATURDAY and day not in closes)
    return closed, tuple(day for day, at in closes.items() if at < exchange.closes)


def _session(opens: time, closes: time) -> str:
    return f"{opens:%H%M}-{closes:%H%M}"


def _exchange_sessions(exchange: _Exchange, year: int) -> Iterator[Range]:
    closed = _listed(exchange, "public", year)
    trading = [day for day in _days(year) if day.weekday() < _SATURDAY and day not in closed]
    early = _listed(exchange, "half_day", year) if exchange.half_days else {trading[-1]}
    for day in trading:
        closes = exchange.closes_early if day in early else exchange.closes
        yield _local(exchange.zone, day, exchange.opens, day, closes)


def _listed(exchange: _Exchange, category: Literal["public", "half_day"], year: int) -> frozenset[date]:
    return frozenset(holidays.financial_holidays(exchange.code, years=year, categories=(category,)))


def _days(year: int) -> Iterator[date]:
    first, end = date(year, 1, 1), date(year + 1, 1, 1)
    return (first + number * _DAY for number in range((end - first).days))


def _local(zone: str, first: date, opens: time, last: date, closes: time) -> Range:
    """From one wall time of a zone to another."""
    clock = ZoneInfo(zone)
    start, end = (datetime.combine(day, at, clock).astimezone(UTC) for day, at in ((first, opens), (last, closes)))
    return Range(start, end)
