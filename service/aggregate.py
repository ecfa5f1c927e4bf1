"""Arithmetic on columns of candles: coarser ones from finer ones, and what stands where there is none."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.bars import Bars

Fill = Literal["none", "flat", "null"]


def aggregate(bars: Bars, starts: NDArray[np.int64]) -> Bars:
    """One candle for each run of equal `starts`, exactly as the database aggregates.

    starts: shape (n,), for each bar the start of the candle that it belongs to, Unix ms, ascending.
    Volume and trades are the sums of what is known, absent where nothing is. The vwap is weighted by volume; absent
    where a bar that traded has none, or nothing traded.
    """
    if not len(bars):
        return bars
    first = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1))
    last = np.append(first[1:], len(starts)) - 1
    known, counted = ~np.isnan(bars.volume), bars.trades >= 0
    volume = np.add.reduceat(np.where(known, bars.volume, 0.0), first)
    traded = np.add.reduceat(np.nan_to_num(bars.vwap * bars.volume, nan=0.0), first)
    lacking = np.logical_or.reduceat(known & (bars.volume > 0) & np.isnan(bars.vwap), first)
    with np.errstate(invalid="ignore", divide="ignore"):
        vwap = np.where(lacking | (volume == 0), np.nan, traded / volume)
    return Bars(
        ts=starts[first],
        open=bars.open[first],
        high=np.maximum.reduceat(bars.high, first),
        low=np.minimum.reduceat(bars.low, first),
        close=bars.close[last],
        volume=np.where(np.logical_or.reduceat(known, first), volume, np.nan),
        vwap=vwap,
        trades=np.where(
            np.logical_or.reduceat(counted, first), np.add.reduceat(np.where(counted, bars.trades, 0), first), -1
        ),
    )


def fill(
    bars: Bars, grid: NDArray[np.int64], how: Fill, doubtful: NDArray[np.bool_], carried: float | None
) -> tuple[Bars, NDArray[np.bool_]]:
    """The candles and, between them, one for every start of the grid without one; and which those are.

    grid: all candle starts of the range, Unix ms, ascending, those of `bars` among them; doubtful: of the same shape,
    whether a candle there may still come or change. null: prices are NaN everywhere. flat: prices are the close before,
    volume and trades 0 (absent where the source has none), and only where it is known that nothing was traded since
    that close: nothing is put where something is missing, nor behind it until the next real candle.
    carried: the close known to hold just before the grid, None if there is none.
    """
    places = np.searchsorted(grid, bars.ts)
    real = np.zeros(len(grid), np.bool_)
    real[places] = True
    order = np.arange(len(grid))
    before = np.maximum.accumulate(np.where(real, order, -1)) if len(grid) else order
    put = ~real
    # Which of the bars is the last one at or before a place; -1, the last of all, is the carried close.
    at = np.cumsum(real) - 1
    closes = np.concatenate((bars.close, [np.nan if carried is None else carried]))
    if how == "flat":
        doubt = np.maximum.accumulate(np.where(doubtful, order, -2)) if len(grid) else order
        put &= (before > doubt) & ~np.isnan(closes[at])
    keep = real | put
    price = closes[at] if how == "flat" else np.full(len(grid), np.nan)
    counts = how == "flat" and not (len(bars) and np.isnan(bars.volume).all())
    nothing = 0.0 if counts else np.nan

    def column(values: NDArray[np.float64], default: NDArray[np.float64] | float) -> NDArray[np.float64]:
        found = np.full(len(grid), default) if isinstance(default, float) else default.copy()
        found[places] = values
        return found[keep]

    trades = np.full(len(grid), 0 if counts else -1, np.int64)
    trades[places] = bars.trades
    filled = Bars(
        ts=grid[keep],
        open=column(bars.open, price),
        high=column(bars.high, price),
        low=column(bars.low, price),
        close=column(bars.close, price),
        volume=column(bars.volume, nothing),
        vwap=column(bars.vwap, np.nan),
        trades=trades[keep],
    )
    return filled, put[keep]
