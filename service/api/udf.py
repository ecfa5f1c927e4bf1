"""/udf: the datafeed of TradingView's charting library (UDF) over the stored candles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, Router, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation, Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType

from service import catalogue, query
from service.api import parameters, problems, udf_answering, udf_history, udf_lists
from service.api.problems import BadQuery, Problem
from service.api.serving import Serving
from service.api.udf_history import HistoryAnswer, NoData
from service.api.udf_lists import Found, Table
from service.api.udf_symbols import DESCRIPTIONS, RESOLUTIONS, SymbolInfo, describe, find
from service.catalogue import ASSET_TYPES
from service.errors import UsageError
from service.frames import PAGE

DEFAULT_FINDS, MOST_FINDS = 30, 1000
TAGS = ["udf"]


class UdfError(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    s: str = "error"
    errmsg: str
    """One sentence: what is wrong, and what would be right."""


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A choice in the chart's search."""

    value: str
    """What `/udf/search` takes; empty: any."""
    name: str
    desc: str


class SymbolType(msgspec.Struct, frozen=True, kw_only=True):
    """A choice in the chart's search."""

    name: str
    value: str
    """What `/udf/search` takes; empty: any."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What this datafeed can do. Symbols are looked up one by one; the groups are there for whoever asks for them."""

    supports_search: bool
    supports_group_request: bool
    supports_marks: bool
    supports_timescale_marks: bool
    supports_time: bool
    supported_resolutions: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    symbols_types: tuple[SymbolType, ...]


CONFIG = Config(
    supports_search=True,
    supports_group_request=False,
    supports_marks=False,
    supports_timescale_marks=False,
    supports_time=True,
    supported_resolutions=RESOLUTIONS,
    exchanges=(
        Exchange(value="", name="All exchanges", desc=""),
        *(Exchange(value=name, name=name, desc=text) for name, text in DESCRIPTIONS.items()),
    ),
    symbols_types=(
        SymbolType(name="All types", value=""),
        *(SymbolType(name=name.capitalize(), value=name) for name in ASSET_TYPES),
    ),
)


class UnknownGroup(UsageError):
    """No such group of symbols."""


def handle(request: Request[Any, Any, Any], exc: Exception) -> Response[UdfError]:
    """Any failure in the protocol's shape, with the status and the words of the other calls."""
    told: Response[Problem] = problems.handle(request, exc)
    text = told.content.message
    if isinstance(exc, BadQuery) and exc.allowed:
        text += f": allowed are {', '.join(exc.allowed)}"
    status = 404 if isinstance(exc, UnknownGroup) else told.status_code
    return Response(UdfError(errmsg=text), status_code=status, media_type=MediaType.JSON)


def asked_by(described: Mapping[str, str], *, required: tuple[str, ...] = ()) -> type[Operation]:
    """What describes a call with such query parameters: `from` can be none of a function."""

    @dataclass
    class Asked(Operation):
        def __post_init__(self) -> None:
            self.parameters = [
                Parameter(
                    name=name,
                    param_in="query",
                    description=text,
                    required=name in required,
                    schema=Schema(type=OpenAPIType.STRING),
                )
                for name, text in described.items()
            ]

    return Asked


def refusal(text: str) -> ResponseSpec:
    """Documents a refusal."""
    return ResponseSpec(data_container=UdfError, description=text, generate_examples=False)


BAD, DOWN = refusal("Something cannot be used"), refusal("The database does not answer")
UNCHANGED = ResponseSpec(data_container=None, description="The ETag of If-None-Match still holds")
SYMBOL = {"symbol": "EURUSD, FOREX:EURUSD, or the provider's C:EURUSD"}
SEARCH = {
    "query": "A part of a symbol, a ticker or a name; without it everything is found",
    "type": f"{' '.join(ASSET_TYPES)}; any without it",
    "exchange": f"{' '.join(DESCRIPTIONS)}; any without it",
    "limit": f"1 to {MOST_FINDS}; {DEFAULT_FINDS} without it",
}
GROUP = {"group": f"{' '.join(ASSET_TYPES)}"}
HISTORY = SYMBOL | {
    "resolution": f"{' '.join(RESOLUTIONS)}, or any whole number of minutes, days (nD), weeks (nW) or months (nM)",
    "from": "Start, inclusive, Unix seconds; needed unless there is a countback",
    "to": "End, exclusive, Unix seconds",
    "countback": f"1 to {PAGE}: so many candles before `to`, wherever `from` is",
}


@get("/config", operation_id="getUdfConfig", summary="What the datafeed can do", tags=TAGS, responses={400: BAD})
async def get_config(request: Request[Any, Any, Any]) -> Config:
    """Resolutions, exchanges and types; a chart asks for it first."""
    parameters.check(request.query_params.dict(), ())
    return CONFIG


@get(
    "/time",
    operation_id="getUdfTime",
    summary="The server's time",
    tags=TAGS,
    media_type=MediaType.TEXT,
    responses={400: BAD},
)
async def get_time(request: Request[Any, Any, Any]) -> str:
    """Unix seconds, as plain text."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    return str(int(serving.clock().timestamp()))


@get(
    "/symbols",
    operation_id="getUdfSymbol",
    operation_class=asked_by(SYMBOL, required=("symbol",)),
    summary="One instrument",
    tags=TAGS,
    responses={400: BAD, 404: refusal("Unknown symbol"), 503: DOWN},
)
async def get_symbol(request: Request[Any, Any, Any]) -> SymbolInfo:
    """Its name, sessions, decimals and resolutions."""
    given = parameters.given(request, SYMBOL)
    if not given.get("symbol"):
        raise BadQuery("symbol is missing: ask as in symbol=EURUSD")
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn:
        (found,) = await describe(conn, serving, [await find(conn, given["symbol"])])
    return found


@get(
    "/search",
    operation_id="searchUdfSymbols",
    operation_class=asked_by(SEARCH),
    summary="Find instruments",
    tags=TAGS,
    responses={400: BAD, 503: DOWN},
)
async def search(request: Request[Any, Any, Any]) -> list[Found]:
    """The likeliest first: the symbol itself, symbols that begin so, then those in which it is found anywhere."""
    given = parameters.given(request, SEARCH)
    asset_type = parameters.choice("type", given.get("type"), ("", *ASSET_TYPES))
    exchange = parameters.choice("exchange", given.get("exchange", "").lower(), ("", *map(str.lower, DESCRIPTIONS)))
    limit = parameters.number("limit", given.get("limit"), default=DEFAULT_FINDS, least=1, most=MOST_FINDS)
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn:
        listed = await catalogue.instruments(conn)
    return udf_lists.search(listed, given.get("query", ""), asset_type, exchange.upper(), limit)


@get(
    "/symbol_info",
    operation_id="getUdfSymbols",
    operation_class=asked_by(GROUP, required=("group",)),
    summary="A group of instruments",
    tags=TAGS,
    responses={400: BAD, 404: refusal("Unknown group"), 503: DOWN},
)
async def get_symbols(request: Request[Any, Any, Any]) -> Table:
    """All instruments of an asset type, as a table with an array for each field."""
    group = parameters.given(request, GROUP).get("group", "").lower()
    if not group:
        raise BadQuery("group is missing", ASSET_TYPES)
    if group not in ASSET_TYPES:
        raise UnknownGroup(f"unknown group {group[:32]!r}: there are {', '.join(ASSET_TYPES)}")
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn, query.snapshot(conn):
        listed = await catalogue.instruments(conn, asset_type=group)
        return udf_lists.table(await describe(conn, serving, listed))


@get(
    "/history",
    operation_id="getUdfHistory",
    operation_class=asked_by(HISTORY, required=("symbol", "resolution", "to")),
    summary="Candles for a chart",
    tags=TAGS,
    responses={304: UNCHANGED, 400: BAD, 404: refusal("Unknown symbol"), 503: DOWN},
)
async def get_history(request: Request[Any, Any, Any]) -> Response[HistoryAnswer | NoData]:
    """The latest candles of the range, 50,000 at most; the headers X-Complete and X-Missing say what is not there."""
    given = parameters.given(request, HISTORY)
    serving: Serving = request.app.state.serving
    return await udf_answering.answer(request, serving, udf_history.read(given))


ROUTER = Router(
    path="/udf",
    route_handlers=[get_config, get_time, get_symbol, search, get_symbols, get_history],
    exception_handlers={Exception: handle},
)
