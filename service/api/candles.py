"""GET /api/candles: candles of one symbol or of several, and whether they are all that there is."""

from dataclasses import dataclass
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import PathParameter

from service.api import asking, parameters
from service.api.answering import answer
from service.api.answers import BAD, DOWN, UNKNOWN
from service.api.asking import DEFAULT_LIMIT, MOST, MOST_SYMBOLS
from service.api.negotiation import FORMATS, MEDIA_TYPES
from service.api.problems import Problem
from service.api.rows import CandlesAnswer, ManyAnswer
from service.api.serving import Serving
from service.frames import PAGE

PARAMETERS = {
    "timeframe": "1m 5m 15m 1h 4h 1d, or any whole multiple: 2h 10m 65m 1w 1mo; 1m without it",
    "tz": "IANA time zone in which hours, days, weeks and months are cut, and times without offset are read; UTC "
    "without it",
    "from": "Start, inclusive: ISO 8601 or a date (in `tz` unless it has an offset), or Unix ms; "
    "without it the latest `limit` candles before `to`",
    "to": "End, exclusive, written like `from`; without it now",
    "limit": f"1 to {MOST}, of each symbol. Without it {DEFAULT_LIMIT}; but as csv, arrow or parquet with `from` the "
    f"whole range. Above {PAGE} it needs `from`, and counts lengths of time, with a candle or without",
    "order": "asc (oldest first; so without it) or desc",
    "fill": "none (so without it): gaps stay. null: nulls for each gap. flat: the close before, where it is known that "
    "nothing was traded since. With either of them `limit` counts lengths of time",
    "format": f"{' '.join(FORMATS)}; without it what `Accept` says, json if it says nothing",
    "require_complete": "true: 409 with the missing ranges unless all of it is there",
}
UNACCEPTABLE = ResponseSpec(data_container=Problem, description="No form that Accept takes", generate_examples=False)
INCOMPLETE = ResponseSpec(data_container=Problem, description="Not all of it is there", generate_examples=False)
UNCHANGED = ResponseSpec(data_container=None, description="The ETag of If-None-Match still holds")
REFUSALS = {304: UNCHANGED, 400: BAD, 404: UNKNOWN, 406: UNACCEPTABLE, 409: INCOMPLETE, 503: DOWN}


@dataclass
class CandlesOperation(Operation):
    """Documents what candles are asked for by, and the forms other than JSON."""

    def __post_init__(self) -> None:
        """Add parameters and content types."""
        described = [
            Parameter(name=name, param_in="query", description=text, schema=Schema(type=OpenAPIType.STRING))
            for name, text in PARAMETERS.items()
        ]
        self.parameters = [*(self.parameters or []), *described]
        content = getattr((self.responses or {}).get("200"), "content", None) or {}
        for form in FORMATS[1:]:
            kind = OpenAPIType.OBJECT if form == "columns" else OpenAPIType.STRING
            content[MEDIA_TYPES[form]] = OpenAPIMediaType(schema=Schema(type=kind))


@dataclass
class ManyOperation(CandlesOperation):
    """The same for several symbols."""

    def __post_init__(self) -> None:
        """Add their parameter."""
        super().__post_init__()
        text = f"Up to {MOST_SYMBOLS} symbols, with commas between them: EURUSD,GBPUSD"
        symbols = Parameter(
            name="symbols",
            param_in="query",
            description=text,
            required=True,
            schema=Schema(type=OpenAPIType.STRING),
        )
        self.parameters = [symbols, *(self.parameters or [])]


@get(
    "/api/candles/{symbol:str}",
    operation_id="getCandles",
    operation_class=CandlesOperation,
    summary="Candles of one symbol",
    tags=["candles"],
    responses=REFUSALS,
)
async def get_candles(
    request: Request[Any, Any, Any],
    symbol: Annotated[str, PathParameter(description="Our key of the instrument, such as EURUSD")],
) -> Response[CandlesAnswer]:
    """Candles whose start lies in `[from, to)`; what is missing of that range is listed with its reason."""
    given = parameters.given(request, PARAMETERS)
    return await _answer(request, [parameters.symbol(symbol)], given, alone=True)


@get(
    "/api/candles",
    operation_id="getCandlesOfMany",
    operation_class=ManyOperation,
    summary="Candles of several symbols",
    tags=["candles"],
    responses=REFUSALS,
)
async def get_candles_of_many(request: Request[Any, Any, Any]) -> Response[ManyAnswer]:
    """The same for each symbol, all of one moment; a table names the symbol in each row."""
    given = parameters.given(request, ("symbols", *PARAMETERS))
    names = parameters.symbols(given.get("symbols", ""), MOST_SYMBOLS)
    return await _answer(request, names, given, alone=False)


async def _answer(
    request: Request[Any, Any, Any], symbols: list[str], given: dict[str, str], *, alone: bool
) -> Response[Any]:
    serving: Serving = request.app.state.serving
    terms = serving.terms()
    asked = asking.read(symbols, given, request.headers.get("accept", ""), terms.now, alone=alone)
    return await answer(request, serving, asked, terms)
