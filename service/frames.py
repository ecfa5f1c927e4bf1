"""What is asked of the candles of a symbol, and what comes back."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.aggregate import Fill
from service.bars import Bars
from service.proof import Head
from service.spans import Span

Order = Literal["asc", "desc"]
PAGE = 50_000
"""Up to so many candles make a page; more are streamed."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: candles whose start lies in `[start, end)`."""

    symbol: str
    span: Span
    start: datetime | None = None
    """None: the latest `limit` candles before `end`."""
    end: datetime | None = None
    """None: now."""
    limit: int | None = None
    """A page has one, of at most PAGE. A stream takes as many lengths of time; None: the whole range."""
    order: Order = "asc"
    """A stream ascends."""
    fill: Fill = "none"
    """Where it is not none, a limit counts lengths of time, with a candle or without."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Candles as columns, in the order asked for. All arrays have the shape (n,)."""

    candles: Bars
    """`ts` is a candle's start. What is absent is NaN, in `trades` -1; so are the prices of a gap filled with null."""
    changing: NDArray[np.bool_]
    """Whether a candle may still change: not over, not settled, not wholly covered, or stale."""
    filled: NDArray[np.bool_] | None = None
    """Whether a candle was put where there is none; None unless that was asked for."""

    def __len__(self) -> int:
        return len(self.candles)

    def part(self, which: slice | NDArray[Any]) -> "Frame":
        """Some of the candles."""
        filled = None if self.filled is None else self.filled[which]
        return Frame(candles=self.candles.take(which), changing=self.changing[which], filled=filled)


class Page(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A whole answer."""

    head: Head
    frame: Frame


class Stream(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An answer whose candles follow, window by window; to be closed (`aclosing`) unless read to its end."""

    head: Head
    frames: AsyncGenerator[Frame, None]
