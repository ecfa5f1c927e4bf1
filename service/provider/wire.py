"""The provider's replies are checked here and nowhere else: what leaves this module as columns can be trusted."""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bars import MINUTE_MS, Bars, RejectedBar, from_ms, to_ms
from service.errors import BadPayload

_SUCCESS = ("OK", "DELAYED")
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _WireBar(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One element of `results`. A price that is null makes the bar impossible; one that is missing, the payload bad."""

    t: _Int64
    o: float | None
    h: float | None
    l: float | None  # noqa: E741 - the provider's name
    c: float | None
    v: float | None = None
    vw: float | None = None
    n: _Int64 | None = None


class _WireReply(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a range-aggregates reply; what Candlewick does not use is left out."""

    status: str
    ticker: str | None = None
    results_count: int | None = msgspec.field(default=None, name="resultsCount")
    results: list[_WireBar] | msgspec.UnsetType = msgspec.UNSET
    next_url: str | None = None
    request_id: str | None = None
    error: str | None = None
    message: str | None = None


LARGEST_PRICE = 1e12
LARGEST_COUNT = 1e15
_DECODER = msgspec.json.Decoder(_WireReply)


class Page(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The bars of one reply, or of several joined ones."""

    bars: Bars
    """All bars, the impossible ones among them, ascending in time, no minute twice. In an impossible bar infinity
    stands for any number that was given and is not finite."""
    impossible: tuple[RejectedBar, ...]
    """Those of `bars` that cannot have happened, ascending in time."""
    next_url: str | None
    """Where the provider says that the answer continues; not checked, and it may hold anything."""
    delayed: bool
    """Whether a reply had the status DELAYED: the newest bars of the plan come late."""


class _Unsound(Exception):
    """What is wrong with a reply, in words."""


def decode(body: bytes, *, ticker: str, start: datetime, end: datetime) -> Page:
    """Turn the body of a 200 reply about `[start, end)` of one ticker into columns.

    `start` and `end` are aware; every bar must start on a whole minute within them. A body without `results` is an
    empty page. Raises BadPayload where the body is broken, contradicts itself or answers another question.
    Source: GET /v2/aggs/ticker/{ticker}/range/1/minute/{from}/{to}.
    """
    reply = _parse(body)
    try:
        wire = _results(reply, ticker)
        bars = _columns(wire)
        _check_times(bars.ts, to_ms(start), to_ms(end))
        return Page(
            bars=_settle(bars),
            impossible=_impossible(bars, wire, body),
            next_url=reply.next_url or None,
            delayed=reply.status == "DELAYED",
        )
    except _Unsound as exc:
        raise BadPayload(str(exc), request_id=reply.request_id) from exc


def join(pages: Sequence[Page]) -> Page:
    """One page of the bars of several; its `next_url` is None.

    Identical bars of one minute collapse. Raises BadPayload where two bars of one minute differ.
    """
    if len(pages) == 1:
        return msgspec.structs.replace(pages[0], next_url=None)
    columns = {name: np.concatenate([getattr(page.bars, name) for page in pages]) for name in Bars.__struct_fields__}
    try:
        bars = _settle(Bars(**columns))
    except _Unsound as exc:
        raise BadPayload(f"{exc} across pages") from exc
    return Page(
        bars=bars,
        impossible=_once(bar for page in pages for bar in page.impossible),
        next_url=None,
        delayed=any(page.delayed for page in pages),
    )


def closed(page: Page, now: datetime) -> Page:
    """The page without the bars that are still open at `now` (aware), those whose minute is not over."""
    now_ms = now.timestamp() * 1000
    return msgspec.structs.replace(
        page,
        bars=page.bars.take(page.bars.ts + MINUTE_MS <= now_ms),
        impossible=tuple(bar for bar in page.impossible if bar.ts + MINUTE_MS <= now_ms),
    )


def _parse(body: bytes) -> _WireReply:
    """Decode the body; NaN and Infinity, which are no JSON but are sent, become infinity."""
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as exc:
        raise BadPayload(f"the reply has an unexpected form: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        broken = BadPayload(f"the reply is not JSON: {exc} (of {len(body)} bytes)")
        broken.__cause__ = exc
    try:
        return msgspec.convert(json.loads(body, parse_constant=lambda _: math.inf), _WireReply)
    except msgspec.ValidationError as exc:
        raise BadPayload(f"the reply has an unexpected form: {exc}") from exc
    except (ValueError, RecursionError):
        raise broken from broken.__cause__


def _results(reply: _WireReply, ticker: str) -> list[_WireBar]:
    if reply.status not in _SUCCESS:
        words = reply.error or reply.message or "without an explanation"
        raise _Unsound(f"status {reply.status!r} in a 200 reply: {words}")
    if reply.ticker is not None and reply.ticker != ticker:
        raise _Unsound(f"the reply is about {reply.ticker!r}, not {ticker!r}")
    wire = [] if reply.results is msgspec.UNSET else reply.results
    if not wire and (reply.results_count or 0) > 0:
        raise _Unsound(f"resultsCount is {reply.results_count}, but there are no results")
    return wire


def _columns(wire: Sequence[_WireBar]) -> Bars:
    """The bars in the provider's order; numpy reads None as NaN."""
    return Bars(
        ts=np.array([bar.t for bar in wire], np.int64),
        open=np.array([bar.o for bar in wire], np.float64),
        high=np.array([bar.h for bar in wire], np.float64),
        low=np.array([bar.l for bar in wire], np.float64),
        close=np.array([bar.c for bar in wire], np.float64),
        volume=np.array([bar.v for bar in wire], np.float64),
        vwap=np.array([bar.vw for bar in wire], np.float64),
        trades=np.array([-1 if bar.n is None else bar.n for bar in wire], np.int64),
    )


def _check_times(ts: NDArray[np.int64], start: int, end: int) -> None:
    for fault, wrong in (
        ("is not on a whole minute", ts % MINUTE_MS != 0),
        ("is outside the range asked for", (ts < start) | (ts >= end)),
    ):
        if wrong.any():
            raise _Unsound(f"t = {ts[wrong][0]} {fault} ({np.count_nonzero(wrong)} of {len(ts)} bars)")


def _settle(bars: Bars) -> Bars:
    """The bars ascending in time and no minute twice; _Unsound where two bars of one minute differ."""
    if bool(np.all(np.diff(bars.ts) > 0)):
        return bars
    bars = bars.take(np.argsort(bars.ts, kind="stable"))
    repeated = np.concatenate([[False], np.diff(bars.ts) == 0])
    for name in Bars.__struct_fields__:
        column = getattr(bars, name)
        differs = repeated[1:] & (column[1:] != column[:-1]) & ~(np.isnan(column[1:]) & np.isnan(column[:-1]))
        if differs.any():
            raise _Unsound(f"two different bars of {from_ms(int(bars.ts[1:][differs][0])):%Y-%m-%d %H:%M} UTC ({name})")
    return bars.take(~repeated)


def _impossible(bars: Bars, wire: Sequence[_WireBar], body: bytes) -> tuple[RejectedBar, ...]:
    """The bars that cannot have happened; `bars` and `wire` are in the provider's order."""
    rules = _broken_rules(bars, wire)
    which = np.flatnonzero(np.logical_or.reduce([broken for _, broken in rules]))
    if not len(which):
        return ()
    try:
        raw = json.loads(body, parse_constant=str)["results"]
    except ValueError as exc:
        raise _Unsound(f"the reply is not JSON: {exc}") from exc
    return _once(
        RejectedBar(
            ts=int(bars.ts[i]),
            raw=json.dumps(raw[i], sort_keys=True, separators=(",", ":")),
            reason="; ".join(rule for rule, broken in rules if broken[i]),
        )
        for i in which
    )


def _broken_rules(bars: Bars, wire: Sequence[_WireBar]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Each rule of a possible bar, worded as its breach, with the bars that break it. `vw` may be outside high..low."""
    prices = np.stack([bars.open, bars.high, bars.low, bars.close])
    given = np.isfinite(prices)
    open_, high, low, close = np.where(given, prices, np.nan)
    return [
        ("a price is not a finite number", ~given.all(axis=0)),
        ("high is below low", high < low),
        ("open is outside low..high", (open_ < low) | (open_ > high)),
        ("close is outside low..high", (close < low) | (close > high)),
        ("volume is negative or not finite", (bars.volume < 0) | np.isinf(bars.volume)),
        ("vwap is not finite", np.isinf(bars.vwap)),
        ("number of trades is negative", np.array([bar.n is not None and bar.n < 0 for bar in wire], np.bool_)),
        ("a number is beyond all measure", _beyond_measure(bars, prices)),
    ]


def _beyond_measure(bars: Bars, prices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Numbers with which the sums of an aggregate would overflow: one such bar would hold back all others."""
    sizes = np.abs(np.vstack([prices, bars.vwap]))
    large = (sizes > LARGEST_PRICE) & np.isfinite(sizes)
    return (
        large.any(axis=0) | ((bars.volume > LARGEST_COUNT) & np.isfinite(bars.volume)) | (bars.trades > LARGEST_COUNT)
    )


def _once(bars: Iterable[RejectedBar]) -> tuple[RejectedBar, ...]:
    """The bars ascending in time, the first of each minute."""
    first: dict[int, RejectedBar] = {}
    for bar in bars:
        first.setdefault(bar.ts, bar)
    return tuple(first[ts] for ts in sorted(first))
