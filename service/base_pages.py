"""Cuts a range into pages as the provider does: a limit counts the base bars that its bars are made of.

Base bars are the stored minutes for bars of minutes and hours, and the days with a bar for longer ones. Where a page
ends is found by the starts of minutes alone; the bars themselves come from the largest stored timeframe that fits.
"""

from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection

from service import proof, windows
from service.aggregate import aggregate
from service.bars import Bars, from_ms, to_ms
from service.look import MOST_GROWN_ROWS, READ_AHEAD, Look, collect
from service.proof import Head, Terms
from service.provider_calls.pages import whole_bars
from service.provider_calls.request import Wanted
from service.ranges import Range
from service.spans import Span, Unit
from service.timeframes import Timeframe
from service.windows import State

_CLOCK: dict[Unit, int] = {"minute": 1, "hour": 60}
_LONGEST: dict[Unit, int] = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}


class BasePage(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One answer's worth of bars, and what is known of the range that it spans."""

    head: Head
    """Judges the page, not the whole range asked for; `more` is `follow`."""
    bars: Bars
    """In the order asked for."""
    base: int
    """Base bars behind them. Of minutes that are no longer kept, a stored coarser candle counts as one."""
    follow: int | None
    """Where the next page begins (descending: ends, exclusive), Unix ms; None if nothing follows."""


class _Cut(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Which of the base bars that were looked at make up the page."""

    base: Span
    bases: NDArray[np.int64]
    """Starts of the base bars looked at, ascending: more than the page holds, if there are more."""
    starts: NDArray[np.int64]
    """Starts of the bars that they belong to."""
    keep: slice

    @property
    def whole(self) -> bool:
        """Whether all of them are on the page."""
        return self.keep == slice(0, len(self.bases))


def most_in_one(span: Span) -> int:
    """The most base bars that one bar can be made of."""
    return span.multiplier * (_CLOCK.get(span.unit) or _LONGEST[span.unit])


async def page(
    conn: AsyncConnection[Any], terms: Terms, symbol: str, wanted: Wanted, *, last_bar: int | None = None
) -> BasePage:
    """The first page of what is wanted; costs O(limit + base bars of one bar), however long the range is.

    conn: within a snapshot. last_bar: about where the symbol's bars end, Unix ms, if known. Raises UnknownSymbol.
    """
    span, newest = wanted.span, wanted.sort == "desc"
    base = Span(multiplier=1, unit="minute" if span.unit in _CLOCK else "day", zone=span.zone)
    count = max(wanted.limit, most_in_one(span)) + 1
    end = min(wanted.end, to_ms(terms.now))
    if base.unit == "day" or span.stored is Timeframe.M1:
        look = Look(symbol=symbol, span=base, low=wanted.start, high=wanted.end, end=end)
        state, found = await collect(conn, look, count, newest=newest, last_bar=last_bar)
        found = found.take(slice(-count, None) if newest else slice(count))
        cut = _cut(base, found.ts, wanted)
        bars = found.take(cut.keep)
        if (span.unit, span.multiplier) != (base.unit, 1):
            bars = aggregate(bars, cut.starts[cut.keep])
    else:
        look = Look(symbol=symbol, span=span, low=wanted.start, high=wanted.end, end=end)
        state, bars = await look.read(conn, look.high, look.high)
        cut = _cut(base, await _bases(conn, look, state, terms, count, newest=newest), wanted)
        if kept := cut.starts[cut.keep].tolist():
            _, bars = await look.read(conn, kept[0], span.after(kept[-1]))
    return _paged(state, terms, wanted, cut, bars)


def _cut(base: Span, bases: NDArray[np.int64], wanted: Wanted) -> _Cut:
    starts = wanted.span.starts(bases)
    keep = whole_bars(starts, wanted.limit, ascending=wanted.sort == "asc") if len(bases) else slice(0, 0)
    return _Cut(base=base, bases=bases, starts=starts, keep=keep)


def _paged(state: State, terms: Terms, wanted: Wanted, cut: _Cut, bars: Bars) -> BasePage:
    span, follow, kept = wanted.span, None, cut.starts[cut.keep]
    asked = looked = Range(from_ms(wanted.start), from_ms(wanted.end))
    if not cut.whole and wanted.sort == "asc":
        follow = span.after(int(kept[-1]))
        asked = Range(asked.start, from_ms(follow))
        looked = Range(asked.start, from_ms(span.after(int(cut.bases[-1]))))
    elif not cut.whole:
        follow = int(kept[0])
        asked = Range(from_ms(follow), asked.end)
        looked = Range(from_ms(int(cut.starts[0])), asked.end)
    head = proof.head(state, terms, span, asked, more=None if follow is None else from_ms(follow))
    # Where the page ends depends on the base bars behind it, and on those of the bar that did not fit.
    counted, made = (proof.head(state, terms, one, looked, more=None).depends for one in (cut.base, span))
    return BasePage(
        head=msgspec.structs.replace(head, depends=None if counted is None else made),
        bars=bars if wanted.sort == "asc" else bars.take(slice(None, None, -1)),
        base=len(kept),
        follow=follow,
    )


async def _bases(
    conn: AsyncConnection[Any], look: Look, state: State, terms: Terms, count: int, *, newest: bool
) -> NDArray[np.int64]:
    """Starts of the oldest or newest `count` base bars, ascending: of coarser candles where minutes are not kept."""
    low, high = look.within(state)
    floor = terms.floors[Timeframe.M1]
    edge = low if floor is None else min(max(low, to_ms(floor)), high)
    stretches = [(look.span.stored, low, edge), (Timeframe.M1, edge, high)]
    parts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for stored, start, end in reversed(stretches) if newest else stretches:
        parts += await _starts(conn, look.symbol, stored, (start, end), count - sum(map(len, parts)), newest=newest)
    return np.concatenate(parts[::-1] if newest else parts)


async def _starts(
    conn: AsyncConnection[Any], symbol: str, stored: Timeframe, within: tuple[int, int], count: int, *, newest: bool
) -> list[NDArray[np.int64]]:
    """Window by window from one end of a range, as a LIMIT alone would make a real-time aggregate read all of it."""
    low, high = within
    length = stored.length // timedelta(milliseconds=1)
    step = int(READ_AHEAD * count) * length
    longest = max(step, MOST_GROWN_ROWS * length)
    parts: list[NDArray[np.int64]] = []
    while low < high and count > 0:
        start, end = (max(low, high - step), high) if newest else (low, min(high, low + step))
        parts.append(await windows.starts(conn, symbol, stored, start, end, limit=count, newest=newest))
        count -= len(parts[-1])
        low, high = (low, start) if newest else (end, high)
        step = min(2 * step, longest)
    return parts
