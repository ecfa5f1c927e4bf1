"""History as TradingView asks for it: in seconds, by a range or by a count, days by the market's trading days."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from service import spans
from service.api import parameters
from service.api.parameters import EARLIEST, LATEST
from service.api.problems import BadQuery
from service.api.udf_symbols import RESOLUTIONS
from service.bars import Bars, from_ms, to_ms
from service.catalogue import Listed
from service.frames import PAGE, Ask, Frame
from service.market_hours import hours, market_of
from service.spans import Span
from service.zones import DAY_MS, clock

_UNITS = {"": "m", "D": "d", "W": "w", "M": "mo"}
_RESOLUTION = re.compile(r"([0-9]{1,6})|([0-9]{0,5})([DWM])")
_DATED = ("D", "W", "M")
_RESOLUTIONS = f"give a whole number of minutes, or of days, weeks or months: {' '.join(RESOLUTIONS)}, 90, 3D, 6M"
_EXAMPLE = "ask as in symbol=EURUSD&resolution=60&from=1709251200&to=1709596800"


class HistoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Candles, ascending, as arrays of one length; prices unadjusted."""

    s: Literal["ok"] = "ok"
    t: list[int]
    """Start, Unix seconds UTC; of days and longer candles 00:00 UTC of their first trading date."""
    o: list[float]
    h: list[float]
    l: list[float]  # noqa: E741 - the protocol's field name
    c: list[float]
    v: list[float | None] | UnsetType = UNSET
    """Volume; absent where the source has none."""


class NoData(msgspec.Struct, frozen=True, kw_only=True):
    """There is no candle in the range."""

    s: Literal["no_data"] = "no_data"
    next_time: int | UnsetType = msgspec.field(name="nextTime", default=UNSET)
    """`t` of the latest candle before the range; absent where there is none."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a request for history asks for, as far as it can be read without knowing the instrument."""

    symbol: str
    resolution: str
    start: int | None
    """Unix ms, inclusive; None: `count` candles before the end."""
    end: int
    """Unix ms, exclusive."""
    count: int

    @property
    def dated(self) -> bool:
        """Whether it is about days or longer candles."""
        return self.resolution.endswith(_DATED)


def read(given: Mapping[str, str]) -> Wanted:
    """Check the parameters; BadQuery says what is allowed."""
    for name in ("symbol", "resolution", "to"):
        if not given.get(name):
            raise BadQuery(f"{name} is missing: {_EXAMPLE}")
    end = _seconds("to", given["to"])
    start = _seconds("from", given["from"]) if given.get("from") else None
    counted = given.get("countback") is not None
    if start is None and not counted:
        raise BadQuery(f"from is missing, and no countback instead: {_EXAMPLE}")
    if start is not None and start >= end and not counted:
        raise BadQuery(f"from={given['from']} must lie before to={given['to']}")
    return Wanted(
        symbol=given["symbol"],
        resolution=given["resolution"],
        start=None if counted or start is None else _since_1970(start),
        end=_since_1970(end),
        count=parameters.number("countback", given.get("countback"), default=PAGE, least=1, most=PAGE),
    )


def ask_of(wanted: Wanted, one: Listed) -> Ask:
    """What to ask for: so many candles before the end, or the latest of the range, as many as a page holds."""
    span = span_of(wanted.resolution, one)
    start, end = wanted.start, wanted.end
    if wanted.dated:
        start, end = None if start is None else day_begins(span, start), day_begins(span, end)
    return Ask(
        symbol=one.symbol,
        span=span,
        start=None if start is None else from_ms(start),
        end=from_ms(end),
        limit=wanted.count,
        order="asc" if start is None else "desc",
    )


def span_of(resolution: str, one: Listed) -> Span:
    """The length of a resolution's candles; days and longer ones follow the trading days of the instrument's market."""
    found = _RESOLUTION.fullmatch(resolution)
    number, unit = (found[1] or found[2] or "1", found[3] or "") if found else ("0", "")
    known = hours(market_of(one.asset_type, one.ticker), range(0))
    zone = "UTC" if not unit or known.zone == "Etc/UTC" else known.zone
    try:
        span = spans.parse(f"{int(number)}{_UNITS[unit]}", zone)
    except ValueError:
        raise BadQuery(f"resolution={resolution[:32]!r} is none: {_RESOLUTIONS}") from None
    return msgspec.structs.replace(span, shift=known.shift // timedelta(milliseconds=1)) if unit else span


def day_begins(span: Span, ms: int) -> int:
    """When the first trading day begins whose date is at 00:00 UTC or later at an instant; both Unix ms."""
    wall = -(-ms // DAY_MS) * DAY_MS - span.shift
    return int(clock(span.zone, wall, wall).first(np.array([wall], np.int64))[0])


def times(span: Span, starts: NDArray[np.int64], *, dated: bool) -> list[int]:
    """`t` of candles that begin at some ascending instants in Unix ms."""
    if dated and len(starts):
        shown = clock(span.zone, int(starts[0]), int(starts[-1])).highest(starts) + span.shift
        starts = shown - shown % DAY_MS
    found: list[int] = (starts // 1000).tolist()
    return found


def columns(frame: Frame, span: Span, *, dated: bool) -> HistoryAnswer:
    """An ascending frame as an answer."""
    bars: Bars = frame.candles
    return HistoryAnswer(
        t=times(span, bars.ts, dated=dated),
        o=bars.open.tolist(),
        h=bars.high.tolist(),
        l=bars.low.tolist(),
        c=bars.close.tolist(),
        v=UNSET if np.isnan(bars.volume).all() else bars.volume.tolist(),
    )


def _seconds(name: str, text: str) -> int:
    """An instant in Unix seconds as Unix ms."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) * 1000 >= to_ms(LATEST):
        raise BadQuery(f"{name}={text[:32]!r} is no instant: give whole Unix seconds (not ms), before {LATEST:%Y}")
    return int(text) * 1000


def _since_1970(ms: int) -> int:
    """Where bars can be: a chart that is scrolled back asks for what was before."""
    return max(ms, to_ms(EARLIEST))
