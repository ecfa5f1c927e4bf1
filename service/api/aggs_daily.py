"""/v2/aggs by whole days: the last one of a ticker, and one day of a whole market."""

from datetime import date
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.params import PathParameter
from msgspec import UNSET

from service import daily, query, tickers
from service.api import rows
from service.api.provider_answers import DayAgg, GroupedAnswer, PreviousAnswer, sent, status
from service.api.provider_errors import REFUSALS
from service.api.provider_operations import TAGS, AdjustedOperation, Ticker
from service.api.sending import headers_of
from service.api.serving import Serving
from service.bars import Bars, to_ms
from service.daily import DayBar
from service.provider_calls.bodies import aggs
from service.provider_calls.markets import MARKETS, market_of, zone_of
from service.provider_calls.refusals import NO_SUCH_CALL, Refusal, request_id
from service.provider_calls.request import Request as Call
from service.provider_calls.request import choice
from service.zones import EPOCH_DATE, midnight

_BOTH_WAYS = {"true": True, "false": False}


@get(
    "/v2/aggs/ticker/{ticker:str}/prev",
    operation_id="getPreviousClose",
    operation_class=AdjustedOperation,
    summary="The last day of a ticker that is over, as the provider answers",
    tags=TAGS,
    responses=REFUSALS,
)
async def get_previous_close(request: Request[Any, Any, Any], ticker: Ticker) -> Response[PreviousAnswer]:
    """The last day with a bar before today, in New York for stocks and indices, else in UTC."""
    adjusted, zone = _adjusted(Call.of(request.scope), market_of(ticker)), zone_of(ticker)
    serving: Serving = request.app.state.serving
    head, bars = None, Bars.empty()
    async with serving.db.connection() as conn, query.snapshot(conn):
        found = await tickers.find(conn, ticker)
        if found is not None:
            last_bar = serving.last_bar(found.symbol)
            known = None if last_bar is None else to_ms(last_bar)
            head, bars = await daily.previous(conn, serving.terms(), found.symbol, zone, last_bar=known)
            serving.note([head])
    results = [
        DayAgg(one.v, one.vw, one.o, one.c, one.h, one.l, daily.dated(zone, one.t), one.n, ticker=ticker)
        for one in aggs(bars)
    ]
    answer = PreviousAnswer(
        ticker=ticker,
        query_count=len(results),
        results_count=len(results),
        adjusted=adjusted,
        results=results or UNSET,
        status=status(complete=head is None or head.complete),
        request_id=request_id(),
        count=len(results) or UNSET,
    )
    missing = [] if head is None else rows.missing(head)
    headers = headers_of(complete=head is not None and head.complete, missing=missing)
    return await sent(request, answer, headers)


@get(
    "/v2/aggs/grouped/locale/{locale:str}/market/{market:str}/{day:str}",
    operation_id="getGroupedDaily",
    operation_class=AdjustedOperation,
    summary="A day of a whole market, as the provider answers",
    tags=TAGS,
    responses=REFUSALS,
)
async def get_grouped_daily(
    request: Request[Any, Any, Any],
    locale: Annotated[str, PathParameter(description="us (stocks, indices) or global (crypto, fx)")],
    market: Annotated[str, PathParameter(description="stocks, indices, crypto, or fx with the metals")],
    day: Annotated[str, PathParameter(description="YYYY-MM-DD, in New York for stocks and indices, else in UTC")],
) -> Response[GroupedAnswer]:
    """The bar of that day of each stored instrument that has one, by ticker."""
    place = MARKETS.get(market)
    if place is None or place.locale != locale:
        raise Refusal(404, NO_SUCH_CALL)
    adjusted, start = _adjusted(Call.of(request.scope), market), midnight(place.zone, _date(day))
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn, query.snapshot(conn):
        found = await daily.market_day(conn, serving.terms(), place, start)
    at = daily.dated(place.zone, start)
    answer = GroupedAnswer(
        query_count=len(found.bars),
        results_count=len(found.bars),
        adjusted=adjusted,
        results=[_day_agg(one, at) for one in found.bars] or UNSET,
        status=status(complete=found.complete),
        request_id=request_id(),
        count=len(found.bars) or UNSET,
    )
    return await sent(request, answer, headers_of(complete=found.complete))


def _adjusted(call: Call, market: str | None) -> bool:
    return choice(call.query, "adjusted", _BOTH_WAYS, default=True) and market != "stocks"


def _date(text: str) -> date:
    try:
        day = date.fromisoformat(text) if len(text) == len("2024-01-31") else None
    except ValueError:
        day = None
    if day is None or day < EPOCH_DATE:
        raise Refusal(400, "Could not parse the time parameter: 'date'. Use YYYY-MM-DD, from 1970 on")
    return day


def _day_agg(one: DayBar, at: int) -> DayAgg:
    volume, vwap = (UNSET if value is None else value for value in (one.volume, one.vwap))
    trades = UNSET if one.trades is None else one.trades
    return DayAgg(volume, vwap, one.open, one.close, one.high, one.low, at, trades, ticker=one.ticker)


CALLS = (get_previous_close, get_grouped_daily)
