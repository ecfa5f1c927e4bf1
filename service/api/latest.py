"""GET /api/latest and GET /api/candles/{symbol}/latest: the last bar, and the candle that it is in."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.params import PathParameter, QueryParameter
from msgspec import UNSET, UnsetType

from service import ledger, query
from service.api import parameters, rows
from service.api.answers import BAD, DOWN, UNKNOWN
from service.api.asking import MOST_SYMBOLS
from service.api.rows import Candle
from service.api.serving import Serving
from service.bars import to_ms
from service.frames import Ask
from service.latest import latest
from service.spans import parse

_FRESH = {"Cache-Control": "no-store"}


class SymbolLatest(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one symbol."""

    symbol: str
    bar: Candle | None
    """Its last one-minute bar; null: it has none."""
    candle: Candle | None
    """The candle that holds this bar; null: it is still to be refreshed."""


class LatestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The ends of symbols that have bars, by symbol."""

    timeframe: str
    symbols: list[SymbolLatest]


class OneLatestAnswer(SymbolLatest, frozen=True, kw_only=True):
    """The end of a symbol, in any timeframe."""

    timeframe: str
    tz: str | UnsetType = UNSET
    """The zone in which the candle was cut; absent: UTC."""
    settled_to: int | None
    """Up to where (exclusive, Unix ms UTC) the provider neither revises nor delays; null without any bar."""


@get(
    "/api/candles/{symbol:str}/latest",
    operation_id="getLatestOfSymbol",
    summary="The last bar and candle of one symbol",
    tags=["candles"],
    responses={400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def get_latest_of_symbol(
    request: Request[Any, Any, Any],
    symbol: Annotated[str, PathParameter(description="Our key of the instrument, such as EURUSD")],
    timeframe: Annotated[str | None, QueryParameter(description="Any, as for candles; 1m without it")] = None,
    tz: Annotated[str | None, QueryParameter(description="IANA time zone; UTC without it")] = None,
) -> Response[OneLatestAnswer]:
    """Also while it is still forming: then it says `final: false`."""
    parameters.check(request.query_params.dict(), ("timeframe", "tz"))
    serving: Serving = request.app.state.serving
    name, span, terms = parameters.symbol(symbol), parameters.span(timeframe, tz), serving.terms()
    async with serving.db.connection() as conn, query.snapshot(conn):
        bars, candles = [
            await query.page(conn, terms, Ask(symbol=name, span=one, limit=1), known=serving.known.get(name))
            for one in (parse("1m"), span)
        ]
    serving.note([bars.head])
    settled = bars.head.settled_to
    body = OneLatestAnswer(
        symbol=name,
        timeframe=span.name,
        tz=UNSET if span.zone == "UTC" else span.zone,
        settled_to=None if settled is None else to_ms(settled),
        bar=next(iter(rows.candles(bars.frame)), None),
        candle=next(iter(rows.candles(candles.frame)), None),
    )
    return Response(body, headers=_FRESH)


@get(
    "/api/latest",
    operation_id="getLatest",
    summary="The last bar and candle of every symbol",
    tags=["candles"],
    responses={400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def get_latest(
    request: Request[Any, Any, Any],
    timeframe: Annotated[str | None, QueryParameter(description="1m 5m 15m 1h 4h 1d; 1m without it")] = None,
    symbols: Annotated[
        str | None, QueryParameter(description=f"Up to {MOST_SYMBOLS}, with commas between them; all without it")
    ] = None,
    asset_type: Annotated[str | None, QueryParameter(description="forex, commodity, index, crypto or stock")] = None,
) -> Response[LatestAnswer]:
    """Of those that have bars, by symbol."""
    parameters.check(request.query_params.dict(), ("timeframe", "symbols", "asset_type"))
    serving: Serving = request.app.state.serving
    chosen, kind = parameters.timeframe(timeframe), parameters.asset_type(asset_type)
    names = None if symbols is None else parameters.symbols(symbols, MOST_SYMBOLS)
    async with serving.db.connection() as conn:
        if names is not None:
            await ledger.known(conn, names)
        found = await latest(conn, serving.terms(), chosen, symbols=names, asset_type=kind, lookups=serving.lookups)
    bars = rows.candles(found.bars)
    candles = bars if found.candles is found.bars else rows.candles(found.candles)
    of_symbol = dict(zip(found.with_candle, candles, strict=True))
    ends = [
        SymbolLatest(symbol=name, bar=bar, candle=of_symbol.get(name))
        for name, bar in zip(found.symbols, bars, strict=True)
    ]
    return Response(LatestAnswer(timeframe=chosen.value, symbols=ends), headers=_FRESH)
