"""Arithmetic on columns of bars: cut, join, correct and aggregate."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.bars import Bars, join

Edits = Mapping[int, Mapping[str, float] | None]
"""Start of a minute (Unix ms) -> the columns to change, or None for a bar that shall not exist."""
_PRICES = ("open", "high", "low", "close")
_ABSENT = {"volume": float("nan"), "vwap": float("nan"), "trades": -1}


def between(bars: Bars, start: int, end: int) -> Bars:
    """The bars that start in `[start, end)`, Unix ms."""
    first, last = np.searchsorted(bars.ts, (start, end))
    return bars.take(np.arange(first, max(first, last)))


def edited(bars: Bars, edits: Edits) -> Bars:
    """The bars with corrections applied; an edit of a minute without a bar must give all four prices (ValueError)."""
    rows = {}
    for ts, values in edits.items():
        if values is not None:
            known = bars.take(bars.ts == ts)
            old = {name: getattr(known, name)[0] for name in Bars.__struct_fields__} if len(known) else {}
            rows[ts] = {**_ABSENT, **old, **values, "ts": ts}
            if lacking := [name for name in _PRICES if name not in rows[ts]]:
                raise ValueError(f"a new bar needs {', '.join(lacking)}")
    rest = bars.take(~np.isin(bars.ts, list(edits)))
    types = {name: getattr(bars, name).dtype for name in Bars.__struct_fields__}
    new = Bars(**{name: np.array([row[name] for row in rows.values()], types[name]) for name in types})
    both = join([rest, new])
    return both.take(np.argsort(both.ts))


def impossible(bars: Bars, minutes: Sequence[int]) -> Bars:
    """The bars with those of `minutes` (Unix ms) made impossible: high below low.

    A minute without a bar gets a copy of the bar before it (or of the first), so that it is surely there.
    """
    if not len(bars):
        return bars
    wanted = np.array(sorted(minutes), np.int64)
    absent = wanted[~np.isin(wanted, bars.ts)]
    copies = bars.take(np.maximum(np.searchsorted(bars.ts, absent) - 1, 0))
    fields = {name: getattr(copies, name) for name in Bars.__struct_fields__}
    both = join([bars, Bars(**{**fields, "ts": absent})])
    both = both.take(np.argsort(both.ts))
    bad = np.isin(both.ts, wanted)
    fields = {name: getattr(both, name) for name in Bars.__struct_fields__}
    return Bars(
        **{
            **fields,
            "high": np.where(bad, both.low * 0.999, both.high),
            "low": np.where(bad, both.high, both.low),
        }
    )


def aggregate(bars: Bars, starts: NDArray[np.int64]) -> Bars:
    """One bar for each run of equal `starts`: the coarser bar that each belongs to, Unix ms, ascending, at least one.

    Volume and trades are sums, vwap is weighted by volume; absent wherever a part that matters lacks it.
    """
    first = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1))
    last = np.append(first[1:], len(starts)) - 1
    high, low = np.maximum.reduceat(bars.high, first), np.minimum.reduceat(bars.low, first)
    volume: NDArray[np.float64] = np.add.reduceat(bars.volume, first).round(8)
    traded = np.where(bars.volume > 0, bars.vwap * bars.volume, bars.volume)
    with np.errstate(invalid="ignore", divide="ignore"):
        vwap = np.round(np.add.reduceat(traded, first) / volume, 8)
    counted = np.minimum.reduceat(bars.trades, first) >= 0
    return Bars(
        ts=starts[first],
        open=bars.open[first],
        high=high,
        low=low,
        close=bars.close[last],
        volume=volume,
        vwap=np.clip(vwap, low, high),
        trades=np.where(counted, np.add.reduceat(bars.trades, first), -1),
    )
