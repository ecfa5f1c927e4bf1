"""Where candles begin and end, by the three ways of counting them: evenly, by a wall clock, by a calendar.

Each grid answers for columns of instants (Unix ms, ascending):
`starts`, the start of the candle that holds each; `ends`, its end (exclusive); `edges`, every start in a range.
"""

from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.zones import DAY_MS, Clock, clock

FAR_DAYS = 700_000
"""Days further from 1970 than this (1,900 years) are not told apart, nor could a calendar name them all."""
_FAR_MONTHS = 1900 * 12

Instants = NDArray[np.int64]


class Even(msgspec.Struct, frozen=True, kw_only=True):
    """Candles of one length."""

    length: int
    """In ms."""
    phase: int = 0
    """An instant at which one of them begins, Unix ms."""

    def starts(self, ts: Instants) -> Instants:
        """The start of the candle that holds each instant."""
        return ts - (ts - self.phase) % self.length

    def ends(self, ts: Instants) -> Instants:
        """The end of the candle that holds each instant."""
        return self.starts(ts) + self.length

    def edges(self, start: int, end: int) -> Instants:
        """Every candle's start in `[start, end)`."""
        return np.arange(start + (self.phase - start) % self.length, end, self.length, dtype=np.int64)


class Wall(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes and hours of a zone whose clocks change.

    A candle begins whenever the wall clock comes to show a multiple of the length since 1970-01-01 00:00, and when it
    jumps forward over such a multiple or onto one.
    """

    zone: str
    length: int
    """In ms."""

    def starts(self, ts: Instants) -> Instants:
        """The start of the candle that holds each instant; ascending ones, as everywhere."""
        found = np.empty_like(ts)
        if not len(ts):
            return found
        here = self._clock(int(ts[0]), int(ts[-1]))
        for part, since, offset, begun in zip(
            _parts(here, ts), here.since.tolist(), here.offset.tolist(), self._begun(here), strict=True
        ):
            struck = ts[part] - (ts[part] + offset) % self.length
            struck[struck < since] = begun
            found[part] = struck
        return found

    def ends(self, ts: Instants) -> Instants:
        """The end of the candle that holds each instant."""
        found = np.empty_like(ts)
        if not len(ts):
            return found
        here = self._clock(int(ts[0]), int(ts[-1]))
        following = [*self._next(here)[1:], None]
        for part, until, offset, after in zip(
            _parts(here, ts), here.until.tolist(), here.offset.tolist(), following, strict=True
        ):
            strikes = ts[part] + self.length - (ts[part] + offset) % self.length
            if after is not None:
                strikes[strikes >= until] = after
            found[part] = strikes
        return found

    def edges(self, start: int, end: int) -> Instants:
        """Every candle's start in `[start, end)`."""
        here = self._clock(start, end)
        parts = [np.empty(0, np.int64)]
        for since, until, offset, begun in zip(
            here.since.tolist(), here.until.tolist(), here.offset.tolist(), self._begun(here), strict=True
        ):
            low, high = max(since, start), min(until, end)
            first = low + -(low + offset) % self.length
            if begun == since != first and start <= since < end:
                parts.append(np.array([since], np.int64))
            if first < high:
                parts.append(np.arange(first, high, self.length, dtype=np.int64))
        return np.concatenate(parts)

    def _clock(self, start: int, end: int) -> Clock:
        return clock(self.zone, start - self.length, end + self.length)

    def _begun(self, here: Clock) -> list[int]:
        """The latest candle's start up to and including the start of each stretch; of no meaning for the first."""
        stretches = list(zip(here.since.tolist(), here.offset.tolist(), strict=True))
        begun = [stretches[0][0]]
        for (since, before), (at, offset) in pairwise(stretches):
            last, shown = at - 1 + before, at + offset
            struck = at - 1 - last % self.length
            if shown % self.length == 0 or shown // self.length > last // self.length:
                begun.append(at)
            else:
                begun.append(struck if struck >= since else begun[-1])
        return begun

    def _next(self, here: Clock) -> list[int]:
        """The first candle's start at or after the start of each stretch; of no meaning for the first."""
        found: list[int] = []
        stretches = zip(here.since.tolist(), here.until.tolist(), here.offset.tolist(), self._begun(here), strict=True)
        for since, until, offset, begun in reversed(list(stretches)):
            strike = since if begun == since else since + -(since + offset) % self.length
            found.append(found[-1] if found and strike >= until else strike)
        return found[::-1]


class Calendar(msgspec.Struct, frozen=True, kw_only=True):
    """Days, or months, of a zone. Exactly one of `days` and `months` is not 0.

    A candle begins at the first instant that shows the first 00:00 of its dates less the shift, or at the jump that
    skips it. An instant belongs to the latest of these at or before it, also where clocks go back over midnight.
    """

    zone: str
    days: int = 0
    """Length in days."""
    months: int = 0
    """Length in calendar months, counted from January 1970."""
    origin: int = 0
    """The day, counted from 1970-01-01, with which one of the candles of `days` begins."""
    shift: int = 0
    """By how much a day begins before its midnight, ms."""

    def starts(self, ts: Instants) -> Instants:
        """The start of the candle that holds each instant; ascending ones, as everywhere."""
        if not len(ts):
            return ts.copy()
        edges = self._between(int(ts[0]), int(ts[-1]))
        cuts = np.searchsorted(ts, edges[1:])
        return np.repeat(edges, np.diff(cuts, prepend=0, append=len(ts)))

    def ends(self, ts: Instants) -> Instants:
        """The end of the candle that holds each instant."""
        return self._edges(self._places(ts) + 1)

    def edges(self, start: int, end: int) -> Instants:
        """Every candle's start in `[start, end)`."""
        edges = self._between(start, max(start, end - 1))
        return edges[(edges >= start) & (edges < end)]

    def _between(self, start: int, last: int) -> Instants:
        """The starts of the candles from the one that holds `start` to the one that holds `last`."""
        low, high = self._places(np.array([start, last], np.int64)).tolist()
        return np.unique(self._edges(np.arange(low, high + 1, dtype=np.int64)))

    def _places(self, ts: Instants) -> Instants:
        """Which candle holds each instant, counted from the one of 1970; where two begin at once, the latter."""
        if not len(ts):
            return ts.copy()
        day = (clock(self.zone, int(ts[0]), int(ts[-1])).highest(ts) + self.shift) // DAY_MS
        if self.days:
            return (day - self.origin) // self.days
        return day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) // self.months

    def _edges(self, places: Instants) -> Instants:
        """When the candles with these numbers begin."""
        if not len(places):
            return places
        if self.days:
            day = np.clip(self.origin + places * self.days, -FAR_DAYS, FAR_DAYS)
        else:
            month = np.clip(places * self.months, -_FAR_MONTHS, _FAR_MONTHS)
            day = month.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
        walls = day * DAY_MS - self.shift
        return clock(self.zone, int(walls[0]), int(walls[-1])).first(walls)


def _parts(here: Clock, ts: Instants) -> list[slice]:
    """The ascending instants that lie in each stretch of a clock."""
    cuts = [*np.searchsorted(ts, here.since).tolist(), len(ts)]
    return [slice(low, high) for low, high in pairwise(cuts)]
