"""Bars as the provider writes them: a value that the source does not have is left out."""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from service.bars import Bars


class Agg(msgspec.Struct, gc=False):
    """A bar on the wire. Neither frozen nor keyword-only: a page makes 50,000 of them, by position."""

    v: float | UnsetType
    """Volume; absent where the source has none."""
    vw: float | UnsetType
    """Volume-weighted average price; absent where the source has none, or nothing was traded."""
    o: float
    c: float
    h: float
    l: float  # noqa: E741  # the provider's name for the low
    t: int
    """Start, Unix ms UTC."""
    n: int | UnsetType
    """Number of trades (forex: quotes); absent where the source has none."""


def aggs(bars: Bars) -> list[Agg]:
    """The bars, in their order."""
    values = [column.tolist() for column in (bars.open, bars.close, bars.high, bars.low, bars.ts)]
    volumes = numbers(bars.volume), numbers(bars.vwap, whole=False)
    return list(map(Agg, *volumes, *values, given(bars.trades, bars.trades < 0)))


def numbers(column: NDArray[np.float64], *, whole: bool = True) -> Iterable[Any]:
    """A column's values: whole numbers as integers if all are (and `whole` allows it), NaN as UNSET."""
    absent = np.isnan(column)
    if whole and (column[~absent] == np.rint(column[~absent])).all():
        return given(np.where(absent, 0, column).astype(np.int64), absent)
    return given(column, absent)


def given(column: NDArray[Any], absent: NDArray[np.bool_]) -> Iterable[Any]:
    """The values of a column, UNSET where absent."""
    if absent.all():
        return repeat(UNSET, len(column))
    values: list[Any] = column.tolist()
    return [UNSET if gone else value for gone, value in zip(absent, values, strict=True)] if absent.any() else values
