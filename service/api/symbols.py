"""/api/sync/symbols: which instruments are kept; add, switch, and remove them."""

from typing import Annotated, Any

import msgspec
from litestar import HttpMethod, Request, Response, delete, get, patch, post, route
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter, QueryParameter
from msgspec import UNSET, Meta, UnsetType

from service import catalogue
from service.api import bodies, parameters
from service.api.answers import BAD, CONFLICT, DOWN, UNKNOWN, answer
from service.api.problems import BadQuery
from service.api.serving import Serving

PATH = "/api/sync/symbols"
ONE = f"{PATH}/{{symbol:str}}"
TAGS = ["sync"]
FLAG = {"enum": ["true", "false"]}
ASSET_TYPE = {"enum": catalogue.ASSET_TYPES}
Ticker = Annotated[
    str,
    Meta(
        description="As the provider spells it, case included: C:EURUSD, X:BTCUSD, I:SPX, AAPL; "
        "the asset type follows from it",
        extra_json_schema={"pattern": catalogue.TICKER_PATTERN},
    ),
]
OwnSymbol = Annotated[
    str,
    Meta(
        description="Our key, in any case; without it what the ticker says: EURUSD, BTCUSD, SPX, AAPL",
        extra_json_schema={"pattern": f"^(?i:{catalogue.SYMBOL_FORM})$"},
    ),
]
Active = Annotated[
    bool, Meta(description="Whether it is to be kept up to date; one that is not keeps its bars and serves them")
]
Name = Annotated[str, Meta(description="For people", min_length=1, max_length=catalogue.LONGEST_NAME)]
SymbolPath = Annotated[str, PathParameter(description="Our key of the instrument, such as EURUSD")]


class InstrumentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument. Every instant is Unix ms UTC."""

    symbol: str
    """Our key: EURUSD."""
    ticker: str
    """The provider's spelling: C:EURUSD."""
    name: str
    asset_type: str
    """forex, commodity, index, crypto or stock."""
    active: bool
    """Whether it is to be kept up to date."""
    first_bar: int | None
    """Start of the first one-minute bar; null without any."""
    last_bar: int | None
    """Start of the last one."""


class InstrumentsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The instruments by symbol. Every instant is Unix ms UTC."""

    symbols: list[InstrumentAnswer]


class NewInstrument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be added."""

    ticker: Ticker
    symbol: OwnSymbol | UnsetType = UNSET
    name: Name | UnsetType = UNSET


class InstrumentChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be otherwise; at least one of the two."""

    active: Active | UnsetType = UNSET
    name: Name | UnsetType = UNSET


@get(
    PATH,
    operation_id="getSymbols",
    summary="The instruments",
    tags=TAGS,
    responses={400: BAD, 503: DOWN},
)
async def get_symbols(
    request: Request[Any, Any, Any],
    asset_type: Annotated[
        str | None,
        QueryParameter(description="Only these; all without it", schema_extra=ASSET_TYPE),
    ] = None,
    active: Annotated[
        str | None, QueryParameter(description="Only those that are so; both without it", schema_extra=FLAG)
    ] = None,
) -> InstrumentsAnswer:
    """The instruments with their tickers, first and last bars, by symbol."""
    parameters.check(request.query_params.dict(), ("asset_type", "active"))
    serving: Serving = request.app.state.serving
    chosen, switched = parameters.asset_type(asset_type), parameters.flag("active", active)
    async with serving.db.connection() as conn:
        found = await catalogue.instruments(conn, asset_type=chosen, active=switched)
    return InstrumentsAnswer(symbols=[answer(InstrumentAnswer, one) for one in found])


@get(
    ONE,
    operation_id="getSymbol",
    summary="One instrument",
    tags=TAGS,
    responses={400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def get_symbol(request: Request[Any, Any, Any], symbol: SymbolPath) -> InstrumentAnswer:
    """One instrument; 404 with the nearest names."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn:
        return answer(InstrumentAnswer, await catalogue.instrument(conn, parameters.symbol(symbol)))


@post(
    PATH,
    operation_id="addSymbol",
    summary="Add an instrument",
    tags=TAGS,
    operation_class=bodies.taking(NewInstrument, required=True),
    request_max_body_size=bodies.LONGEST,
    responses={400: BAD, 409: CONFLICT, 503: DOWN},
)
async def add_symbol(request: Request[Any, Any, Any]) -> InstrumentAnswer:
    """Any ticker of the provider; a running worker begins with its history at once. 409 where its name is taken."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    new = await bodies.read(request, NewInstrument)
    async with serving.db.connection() as conn:
        added = await catalogue.add(conn, new.ticker, bodies.given(new.symbol), bodies.given(new.name))
    return answer(InstrumentAnswer, added)


@patch(
    ONE,
    operation_id="changeSymbol",
    summary="Switch an instrument on or off, or rename it",
    tags=TAGS,
    operation_class=bodies.taking(InstrumentChange, required=True),
    request_max_body_size=bodies.LONGEST,
    responses={400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def change_symbol(request: Request[Any, Any, Any], symbol: SymbolPath) -> InstrumentAnswer:
    """Only what is given changes; the same twice changes nothing."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    asked = await bodies.read(request, InstrumentChange)
    active, name = bodies.given(asked.active), bodies.given(asked.name)
    if active is None and name is None:
        raise BadQuery("the body changes nothing: give at least one field", ["active", "name"])
    async with serving.db.connection() as conn:
        changed = await catalogue.change(conn, parameters.symbol(symbol), active=active, name=name)
    return answer(InstrumentAnswer, changed)


@delete(
    ONE,
    operation_id="removeSymbol",
    summary="Remove an instrument",
    tags=TAGS,
    responses={400: BAD, 404: UNKNOWN, 409: CONFLICT, 503: DOWN},
)
async def remove_symbol(
    request: Request[Any, Any, Any],
    symbol: SymbolPath,
    purge: Annotated[
        str | None,
        QueryParameter(description="true: with all its bars and candles; false without it", schema_extra=FLAG),
    ] = None,
) -> None:
    """409 where it has bars, unless `purge=true`; then they are gone for good."""
    parameters.check(request.query_params.dict(), ("purge",))
    serving: Serving = request.app.state.serving
    whole = parameters.flag("purge", purge) or False
    async with serving.db.connection() as conn:
        await catalogue.remove(conn, serving.db.engine, parameters.symbol(symbol), purge=whole)


def options(path: str, *methods: str) -> HTTPRouteHandler:
    """OPTIONS for a path with several calls: of those the framework would name only the first. Register it before."""

    @route(path, http_method=HttpMethod.OPTIONS, status_code=204, include_in_schema=False, sync_to_thread=False)
    def names() -> Response[None]:
        return Response(None, status_code=204, headers={"Allow": ", ".join([*methods, "OPTIONS"])})

    return names


CALLS = (
    options(PATH, "GET", "POST"),
    options(ONE, "DELETE", "GET", "PATCH"),
    get_symbols,
    get_symbol,
    add_symbol,
    change_symbol,
    remove_symbol,
)
"""In the order in which they are to be registered."""
