"""Candles as JSON: an object for each candle, or an array for each column; and what an answer says of itself."""

from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from service.api.problems import MissingRange
from service.bars import to_ms
from service.frames import Frame
from service.proof import Head


class Candle(msgspec.Struct, gc=False):
    """One candle; prices unadjusted, in the instrument's quote unit. Not frozen: that makes thousands dearer."""

    t: int
    """Start, Unix ms UTC."""
    o: float | None
    """Open; the four prices are null only where `fill=null` put them."""
    h: float | None
    l: float | None  # noqa: E741 - the provider's field name
    c: float | None
    v: float | None
    """Volume; null where the source has none."""
    vw: float | None
    """Volume-weighted average price; null where the source has none or nothing was traded."""
    n: int | None
    """Number of trades (forex: quotes); null where the source has none."""
    final: bool | UnsetType = UNSET
    """Present, as false, while the candle may still change: not over, not settled, not wholly covered, or stale."""
    filled: bool | UnsetType = UNSET
    """Present, as true, where there is no candle and `fill` put this one."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself. Every instant is Unix ms UTC."""

    symbol: str
    timeframe: str
    tz: str | UnsetType = UNSET
    """The zone in which days and hours were cut; absent: UTC."""
    start: int = msgspec.field(name="from")
    """Start (inclusive) of the range that `complete` judges."""
    end: int = msgspec.field(name="to")
    """End (exclusive) of it."""
    complete: bool
    """Nothing of the range is missing, as far as it is settled; false if nothing of it is."""
    settled_to: int | None
    """Up to where (exclusive) of the range the provider neither revises nor delays; null without any bar."""
    missing: list[MissingRange]


class CandlesAnswer(Proof, frozen=True, kw_only=True):
    """Candles and the proof of their completeness. Every instant is Unix ms UTC."""

    candles: list[Candle]
    next: str | None
    """Path and query of the next page, null at the end."""
    no_data: bool | UnsetType = UNSET
    """Present, as true, for a symbol without any bar."""


class ManyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer for each symbol, in the order asked for."""

    symbols: list[CandlesAnswer]


def proof(head: Head) -> dict[str, Any]:
    """The fields of `Proof`."""
    return {
        "symbol": head.symbol,
        "timeframe": head.span.name,
        "tz": UNSET if head.span.zone == "UTC" else head.span.zone,
        "start": to_ms(head.asked.start),
        "end": to_ms(head.asked.end),
        "complete": head.complete,
        "settled_to": None if head.settled_to is None else to_ms(head.settled_to),
        "missing": missing(head),
    }


def missing(head: Head, *, named: bool = False) -> list[MissingRange]:
    """What is missing, with the symbol's name or without."""
    symbol = head.symbol if named else UNSET
    return [
        MissingRange(symbol=symbol, start=to_ms(gap.range.start), end=to_ms(gap.range.end), reason=gap.reason)
        for gap in head.missing
    ]


def candles(frame: Frame) -> list[Candle]:
    """A frame's candles."""
    bars = frame.candles
    prices = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.vwap)  # NaN is written as null
    values = [bars.ts.tolist(), *(column.tolist() for column in prices), _counts(bars.trades)]
    changing, filled = frame.changing.any(), frame.filled is not None and frame.filled.any()
    if not changing and not filled:
        return list(map(Candle, *values))
    final: Any = [False if one else UNSET for one in frame.changing.tolist()]
    if frame.filled is None or not filled:
        return list(map(Candle, *values, final))
    return list(map(Candle, *values, final, [True if one else UNSET for one in frame.filled.tolist()]))


def columns(frame: Frame) -> dict[str, list[Any]]:
    """A frame's candles by column: the fields of a candle, and `final` of all; `filled` where gaps were filled."""
    bars = frame.candles
    found = {
        "t": bars.ts.tolist(),
        "o": bars.open.tolist(),
        "h": bars.high.tolist(),
        "l": bars.low.tolist(),
        "c": bars.close.tolist(),
        "v": bars.volume.tolist(),
        "vw": bars.vwap.tolist(),
        "n": _counts(bars.trades),
        "final": (~frame.changing).tolist(),
    }
    return found if frame.filled is None else found | {"filled": frame.filled.tolist()}


def _counts(trades: NDArray[np.int64]) -> list[int | None]:
    absent = trades < 0
    counts: list[int | None] = trades.tolist()
    return [None if gone else count for gone, count in zip(absent, counts, strict=True)] if absent.any() else counts
