"""The length of a candle of any multiple and unit: how it is written, where its candles lie, what it is made from.

Minutes and hours are counted from 1970-01-01 00:00, longer units by the calendar of a zone; multiples are counted from
the day, week, month, quarter or year that holds 1970-01-01.
"""

import re
from datetime import timedelta
from functools import lru_cache
from math import gcd
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bars import MINUTE_MS
from service.grids import FAR_DAYS, Calendar, Even, Wall
from service.timeframes import Timeframe
from service.zones import DAY_MS, clock, zone_named

Unit = Literal["minute", "hour", "day", "week", "month", "quarter", "year"]
UNITS: tuple[Unit, ...] = get_args(Unit)

_MS: dict[Unit, int] = {"minute": MINUTE_MS, "hour": 60 * MINUTE_MS}
_DAYS: dict[Unit, int] = {"day": 1, "week": 7, "month": 30, "quarter": 90, "year": 365}
_MONTHS: dict[Unit, int] = {"month": 1, "quarter": 3, "year": 12}
_SHORT: dict[Unit, str] = dict(zip(UNITS, ("m", "h", "d", "w", "mo", "q", "y"), strict=True))
_SPELLINGS: dict[str, Unit] = {
    spelling: unit
    for unit in UNITS
    for spelling in (_SHORT[unit], unit, f"{unit}s", *(("min",) if unit == "minute" else ()))
}
_TEXT = re.compile(r"(\d{1,9})([A-Za-z]+)", re.ASCII)
_MONDAY, _SUNDAY = -3, -4
"""1969-12-29 and 1969-12-28: the starts of the weeks that hold 1970-01-01, in days from it."""
_MOST = 1_000_000_000
"""A multiplier above this changes nothing: one such candle holds all of history."""
_LONGEST_CLOCK, _LONGEST = timedelta(days=366), timedelta(days=3660)
_FAR_MS = FAR_DAYS * DAY_MS
_KNOWN = (0, (70 * 365 + 17) * DAY_MS)
"""1970 to 2040: the years whose offsets decide what a span is made from."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The length of candles and the grid on which they lie. Instants are Unix ms UTC, columns of them ascending.

    They are told apart within 1,900 years of 1970: a candle's edge that lies further away is put there.
    """

    multiplier: int
    """At least 1."""
    unit: Unit
    zone: str = "UTC"
    """IANA name (`zone_named`), whose calendar days and longer units follow."""
    wall: bool = False
    """Whether minutes and hours are counted on the zone's wall clock, or in UTC as the provider does."""
    monday: bool = False
    """Whether weeks start on Monday, or on Sunday as the provider's do."""
    shift: int = 0
    """By how many ms a local day begins before its midnight (7 hours: it ends at 17:00); days and longer units only."""

    def floor(self, ms: int) -> int:
        """Start of the candle that holds an instant."""
        grid = _grid(self)
        if isinstance(grid, Even):
            return ms - (ms - grid.phase) % grid.length
        return int(grid.starts(np.array([ms], np.int64))[0])

    def after(self, ms: int) -> int:
        """End (exclusive) of the candle that holds an instant."""
        grid = _grid(self)
        if isinstance(grid, Even):
            return ms - (ms - grid.phase) % grid.length + grid.length
        return int(grid.ends(np.array([ms], np.int64))[0])

    def ceil(self, ms: int) -> int:
        """The instant itself if a candle starts there, else the start of the next one."""
        return ms if self.floor(ms) == ms else self.after(ms)

    def starts(self, ts: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of some ascending instants the start of its candle."""
        return _grid(self).starts(ts)

    def ends(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of some ascending candle starts (or instants within) the end (exclusive) of that candle."""
        return _grid(self).ends(starts)

    def edges(self, start: int, end: int) -> NDArray[np.int64]:
        """Every candle's start in `[start, end)`, ascending; the caller bounds how many these are."""
        return _grid(self).edges(start, end)

    def back(self, ms: int, count: int) -> int:
        """The candle's start that lies `count` (0 or more) candles before the one that holds an instant."""
        return self._walk(ms, -count)

    def forward(self, ms: int, count: int) -> int:
        """The candle's start that lies `count` (0 or more) candles after the one that holds an instant."""
        return self._walk(ms, count)

    def _walk(self, ms: int, count: int) -> int:
        start, grid = self.floor(ms), _grid(self)
        if isinstance(grid, Even):
            return min(max(start + count * grid.length, -_FAR_MS), _FAR_MS)
        reach = abs(count) * _milliseconds(self.nominal) * 21 // 20 + 3 * DAY_MS
        while True:
            low, high = (start, start + reach) if count >= 0 else (start - reach, start + 1)
            edges = grid.edges(max(low, -_FAR_MS), min(high, _FAR_MS))
            if len(edges) > abs(count):
                return int(edges[count if count >= 0 else count - 1])
            if low <= -_FAR_MS or high >= _FAR_MS:
                return _FAR_MS if count > 0 else -_FAR_MS
            reach *= 2

    @property
    def nominal(self) -> timedelta:
        """Length of a candle by convention, for estimates: 30 days a month, 90 a quarter, 365 a year, others exact."""
        count = min(self.multiplier, _MOST)
        if self.unit in _MS:
            return timedelta(milliseconds=count * _MS[self.unit])
        return timedelta(days=min(count * _DAYS[self.unit], timedelta.max.days))

    @property
    def stored(self) -> Timeframe:
        """The largest timeframe of which every candle holds whole buckets; 1m where none does."""
        return _stored(self)

    @property
    def native(self) -> bool:
        """Whether the candles are the rows of the stored timeframe themselves."""
        return _native(self)

    @property
    def name(self) -> str:
        """How it is written: 1m, 65m, 2h, 1d, 1w, 1mo, 1q, 1y; `parse` reads it. The zone is not part of it."""
        multiplier, unit = _reduced(self.multiplier, self.unit)
        return f"{multiplier}{_SHORT[unit]}"


def parse(text: str, zone: str = "UTC") -> Span:
    """Read a whole number and a unit (5m, 2 hours as 2h or 2hours, 1mo), or any spelling of a Timeframe.

    Case is ignored, but `1M` is refused: a month to some, a minute to others.
    Minutes and hours are counted on the zone's wall clock, whole days of them
    become days, and weeks start on Monday. ValueError says what is allowed, of the zone too.
    """
    found = _TEXT.fullmatch(_plain(text))
    if found is not None and found[2] == "M":
        raise ValueError(f"timeframe {text[:32]!r} could be minutes or months: write {found[1]}m or {found[1]}mo")
    unit = None if found is None else _SPELLINGS.get(found[2].lower())
    if found is None or unit is None or int(found[1]) < 1:
        raise ValueError(f"unknown timeframe {text[:32]!r}: {_ALLOWED}")
    longest = _LONGEST_CLOCK if unit in _MS else _LONGEST
    if Span(multiplier=int(found[1]), unit=unit).nominal > longest:
        raise ValueError(f"timeframe {text[:32]!r} is too long: {_ALLOWED}")
    multiplier, unit = _reduced(int(found[1]), unit)
    return Span(multiplier=multiplier, unit=unit, zone=zone_named(zone), wall=True, monday=True)


_ALLOWED = (
    "give a whole number from 1 and a unit, m, h, d, w, mo, q or y, such as 5m, 2h, 1d, 1w, 1mo; "
    f"minutes and hours up to {_LONGEST_CLOCK.days} days, longer units up to {_LONGEST.days} days"
)


def _plain(text: str) -> str:
    """As a number and a unit, where it is one of a timeframe's own spellings (`daily`)."""
    plain = text.strip()
    return Timeframe.parse(plain).value if plain.isalpha() and plain.lower() in Timeframe.spellings() else plain


def _reduced(multiplier: int, unit: Unit) -> tuple[int, Unit]:
    """Whole hours of minutes as hours, whole days of hours as days."""
    if unit == "minute" and multiplier % 60 == 0:
        multiplier, unit = multiplier // 60, "hour"
    if unit == "hour" and multiplier % 24 == 0:
        multiplier, unit = multiplier // 24, "day"
    return multiplier, unit


def _milliseconds(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


@lru_cache(maxsize=1024)
def _grid(span: Span) -> Even | Wall | Calendar:
    """The way in which its candles are counted."""
    count = min(span.multiplier, _MOST)
    if span.unit in _MS:
        length = count * _MS[span.unit]
        return Wall(zone=span.zone, length=length) if span.wall and span.zone != "UTC" else Even(length=length)
    if span.unit in _MONTHS:
        return Calendar(zone=span.zone, months=count * _MONTHS[span.unit], shift=span.shift)
    days = count * _DAYS[span.unit]
    origin = 0 if span.unit == "day" else _MONDAY if span.monday else _SUNDAY
    if span.zone == "UTC" and days <= FAR_DAYS:
        return Even(length=days * DAY_MS, phase=origin * DAY_MS - span.shift)
    return Calendar(zone=span.zone, days=days, origin=origin, shift=span.shift)


@lru_cache(maxsize=1024)
def _common(span: Span) -> int:
    """The greatest length, ms, of which every edge of a span is a multiple in UTC, by its offsets from 1970 to 2040."""
    grid = _grid(span)
    if isinstance(grid, Even):
        return gcd(grid.length, grid.phase)
    length, shift = (grid.length, 0) if isinstance(grid, Wall) else (DAY_MS, grid.shift)
    here = clock(span.zone, *_KNOWN)
    of_them = (here.until > _KNOWN[0]) & (here.since < _KNOWN[1])
    jumps = here.since[of_them & (here.since > _KNOWN[0])]
    return gcd(length, shift, *here.offset[of_them].tolist(), *jumps[grid.starts(jumps) == jumps].tolist())


@lru_cache(maxsize=1024)
def _stored(span: Span) -> Timeframe:
    common = _common(span)
    return next((one for one in reversed(Timeframe) if common % _milliseconds(one.length) == 0), Timeframe.M1)


@lru_cache(maxsize=1024)
def _native(span: Span) -> bool:
    return span.nominal == span.stored.length and _common(span) % _milliseconds(span.nominal) == 0
