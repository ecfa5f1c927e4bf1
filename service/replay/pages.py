"""Cutting a range into pages: whole bars only, as many as the limit of one-minute bars behind them allows."""

from collections.abc import Sequence

import msgspec
import numpy as np

from service.bars import MINUTE_MS, Bars, join
from service.provider_calls.pages import whole_bars
from service.provider_calls.request import Wanted
from service.replay.columns import aggregate
from service.replay.market import Market, View
from service.replay.rendering import render


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's worth of bars, rendered."""

    texts: Sequence[bytes]
    """Put together: the bars in the order asked for, a comma behind every bar."""
    base: int
    """One-minute bars behind them."""
    count: int
    """Bars in it."""
    follow: int | None
    """Where the next page begins (descending: ends, exclusive), Unix ms; None if nothing follows."""


def page_of(market: Market, wanted: Wanted, view: View) -> Page:
    """The first page of what is wanted."""
    if wanted.span.unit == "minute" and wanted.span.multiplier == 1 and wanted.sort == "asc":
        return _minutes(market, wanted, view)
    return _any(market, wanted, view)


def _minutes(market: Market, wanted: Wanted, view: View) -> Page:
    """One-minute bars ascending, the way that must be fast: rendered days are cut and joined."""
    texts: list[bytes] = []
    count, last = 0, 0
    start, end = max(wanted.start, view.start), min(wanted.end, view.settled)
    for day in market.days(wanted.ticker, wanted.start, wanted.end, view):
        fragment = market.fragment(wanted.ticker, day)
        low, high = np.searchsorted(fragment.ts, (start, end)).tolist()
        if low >= high:
            continue
        take = min(high - low, wanted.limit - count)
        if take:
            texts.append(fragment.cut(low, low + take))
            count, last = count + take, int(fragment.ts[low + take - 1])
        if take < high - low:
            return Page(texts=texts, base=count, count=count, follow=last + MINUTE_MS)
    if wanted.start <= view.settled < wanted.end:
        forming = market.forming(wanted.ticker, view)
        if len(forming) and count == wanted.limit:
            return Page(texts=texts, base=count, count=count, follow=last + MINUTE_MS)
        texts.append(render(forming).text)
        count += len(forming)
    return Page(texts=texts, base=count, count=count, follow=None)


def _any(market: Market, wanted: Wanted, view: View) -> Page:
    """Bars of any length in any order."""
    bars = _enough(market, wanted, view)
    if not len(bars):
        return Page(texts=[], base=0, count=0, follow=None)
    starts = wanted.span.starts(bars.ts)
    keep = whole_bars(starts, wanted.limit, ascending=wanted.sort == "asc")
    kept, starts = bars.take(np.arange(len(bars))[keep]), starts[keep]
    single = wanted.span.unit == "minute" and wanted.span.multiplier == 1
    result = kept if single else aggregate(kept, starts)
    follow = None
    if len(kept) < len(bars):
        follow = wanted.span.after(int(starts[-1])) if wanted.sort == "asc" else int(starts[0])
    if wanted.sort == "desc":
        result = result.take(np.arange(len(result))[::-1])
    return Page(texts=[render(result).text], base=len(kept), count=len(result), follow=follow)


def _enough(market: Market, wanted: Wanted, view: View) -> Bars:
    """One-minute bars from the side where the page begins: all of them, or enough to know where the page ends."""
    ascending = wanted.sort == "asc"
    parts: list[Bars] = []
    count = 0
    days = market.days(wanted.ticker, wanted.start, wanted.end, view)
    for day in days if ascending else reversed(days):
        bars = market.bars(wanted.ticker, day, view)
        bars = bars.take((bars.ts >= wanted.start) & (bars.ts < wanted.end))
        if not len(bars):
            continue
        parts.append(bars)
        count += len(bars)
        oldest, newest = (parts[0], parts[-1]) if ascending else (parts[-1], parts[0])
        if count > wanted.limit and wanted.span.floor(int(oldest.ts[0])) != wanted.span.floor(int(newest.ts[-1])):
            break
    return join(parts if ascending else parts[::-1])
