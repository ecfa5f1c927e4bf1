"""GET /api/candles/{symbol}: candles, and whether they are all that there is."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from litestar import Request, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter

from service import query
from service.api import parameters
from service.api.problems import BadQuery, Problem
from service.api.serving import Serving
from service.bars import to_ms
from service.errors import UnknownSymbol
from service.query import Candle

DEFAULT_LIMIT = 500
MOST = 50_000
_NAMES = ("timeframe", "from", "to", "limit", "order")


class MissingRange(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the range asked for that is not there."""

    start: int = msgspec.field(name="from")
    """Start (inclusive), Unix ms UTC."""
    end: int = msgspec.field(name="to")
    """End (exclusive), Unix ms UTC."""
    reason: str
    """pending: being fetched or refreshed. never requested: ask for a backfill. unavailable: the provider has no
    usable bar. expired: older than what is kept."""


class CandlesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Candles and the proof of their completeness. Every instant is Unix ms UTC."""

    symbol: str
    timeframe: str
    start: int = msgspec.field(name="from")
    """Start (inclusive) of the range that `complete` judges."""
    end: int = msgspec.field(name="to")
    """End (exclusive) of it."""
    complete: bool
    """Nothing of the range is missing, as far as it is settled; false if nothing of it is."""
    settled_to: int | None
    """Up to where (exclusive) the provider neither revises nor delays; null without any bar."""
    missing: list[MissingRange]
    candles: list[Candle]
    next: str | None
    """Path and query of the next page, null at the end."""
    no_data: bool | msgspec.UnsetType = msgspec.UNSET
    """Present, as true, for a symbol without any bar."""


_BAD = ResponseSpec(data_container=Problem, description="A parameter cannot be used", generate_examples=False)
_UNKNOWN = ResponseSpec(data_container=Problem, description="Unknown symbol", generate_examples=False)
_DOWN = ResponseSpec(data_container=Problem, description="The database does not answer", generate_examples=False)


@get(
    "/api/candles/{symbol:str}",
    operation_id="getCandles",
    summary="Candles of one symbol",
    tags=["candles"],
    responses={400: _BAD, 404: _UNKNOWN, 503: _DOWN},
)
async def get_candles(  # noqa: PLR0917 - Litestar calls it by name
    request: Request[Any, Any, Any],
    symbol: Annotated[str, PathParameter(description="Our key of the instrument, such as EURUSD")],
    timeframe: Annotated[
        str | None, QueryParameter(description="1m 5m 15m 1h 4h 1d, or 1min 5min 15min 60min 1hour 4hour 1day daily")
    ] = None,
    from_: Annotated[
        str | None,
        QueryParameter(
            name="from",
            description="Start, inclusive: ISO 8601 (naive = UTC), a date, or Unix ms; "
            "without it the latest `limit` candles before `to`",
        ),
    ] = None,
    to: Annotated[str | None, QueryParameter(description="End, exclusive, written like `from`; without it now")] = None,
    limit: Annotated[str | None, QueryParameter(description=f"1 to {MOST}; {DEFAULT_LIMIT} without it")] = None,
    order: Annotated[str | None, QueryParameter(description="asc (oldest first; so without it) or desc")] = None,
) -> CandlesAnswer:
    """Candles whose start lies in `[from, to)`; what is missing of that range is listed with its reason."""
    if not re.fullmatch("[!-~]{1,32}", symbol):
        raise UnknownSymbol(symbol[:32])
    parameters.check(request.query_params.dict(), _NAMES)
    serving: Serving = request.app.state.serving
    chosen = parameters.timeframe(timeframe)
    most = parameters.number("limit", limit, default=DEFAULT_LIMIT, least=1, most=MOST)
    direction: Literal["asc", "desc"] = parameters.choice("order", order, ("asc", "desc"))
    start, end = parameters.instant("from", from_), parameters.instant("to", to)
    now = serving.clock()
    if start is not None and start >= (end or now):
        raise BadQuery(f"from ({start.isoformat()}) must lie before to ({(end or now).isoformat()})")
    async with serving.db.connection() as conn:
        found = await query.candles(
            conn,
            serving.db.engine,
            symbol.upper(),
            chosen,
            start=start,
            end=end,
            limit=most,
            order=direction,
            now=now,
            settle=timedelta(minutes=serving.settings.settle_minutes),
            retention=serving.settings.retention,
        )
    serving.source = found.source
    return _answer(found, most, direction)


def _answer(found: query.Candles, limit: int, order: str) -> CandlesAnswer:
    return CandlesAnswer(
        symbol=found.symbol,
        timeframe=found.timeframe.value,
        start=to_ms(found.asked.start),
        end=to_ms(found.asked.end),
        complete=found.complete,
        settled_to=None if found.settled_to is None else to_ms(found.settled_to),
        missing=[
            MissingRange(start=to_ms(gap.range.start), end=to_ms(gap.range.end), reason=gap.reason)
            for gap in found.missing
        ],
        candles=list(found.candles),
        next=_next_page(found, limit, order),
        no_data=True if found.no_data else msgspec.UNSET,
    )


def _next_page(found: query.Candles, limit: int, order: str) -> str | None:
    if found.more is None:
        return None
    start, end = (found.more, found.asked.end) if order == "asc" else (found.start, found.more)
    rest: dict[str, object] = {"timeframe": found.timeframe.value}
    if start is not None:
        rest["from"] = to_ms(start)
    rest |= {"to": to_ms(end), "limit": limit, "order": order}
    return f"/api/candles/{found.symbol}?{urlencode(rest)}"
