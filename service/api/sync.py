"""/api/sync/sync and /api/sync/sync-all: ask for ranges now, and wait for them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from msgspec import UNSET, Meta, UnsetType

from service import heartbeat, ledger, requesting
from service.api import bodies, parameters
from service.api.answers import BAD, DOWN, UNKNOWN, answer
from service.api.problems import BadQuery
from service.api.serving import Serving
from service.api.status import Span, spans
from service.api.symbols import SymbolPath
from service.bars import to_ms
from service.catalogue import ASSET_TYPES
from service.errors import UnknownSymbol
from service.instruments import AssetType
from service.reasons import alive
from service.requesting import Asked
from service.timeframes import Timeframe
from service.waiting import Outcome, Waiting

LONGEST_WAIT = 120
MOST_DAYS = 36_500
AssetTypeField = Annotated[
    str, Meta(description="Of one symbol: its own; of all: only these", extra_json_schema={"enum": list(ASSET_TYPES)})
]
TimeframeField = Annotated[
    str,
    Meta(
        description="Whose candles the result counts; only 1m is ever fetched",
        extra_json_schema={"enum": Timeframe.spellings()},
    ),
]
Days = Annotated[int, Meta(description="So many days back from now", ge=1, le=MOST_DAYS)]
Instant = Annotated[
    str | int,
    Meta(
        description="ISO 8601 (naive = UTC), a date, or Unix ms; from is inclusive, to exclusive",
        examples=["2024-03-04T10:00Z", "2024-03-04", 1709546400000],
    ),
]
WaitQuery = Annotated[
    str | None,
    QueryParameter(
        description=f"Seconds to wait for the result, 0 to {LONGEST_WAIT}; without it the answer is 202",
        schema_extra={"pattern": "^[0-9]{1,3}$"},
    ),
]


class SyncBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be fetched; without days and range: from where the coverage ends up to now."""

    asset_type: AssetTypeField | UnsetType = UNSET
    timeframe: TimeframeField | UnsetType = UNSET
    backfill_days: Days | UnsetType = UNSET
    start: Instant | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Instant | UnsetType = msgspec.field(name="to", default=UNSET)


class SyncResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    complete: bool
    """Nothing of the range, as far as it is settled, is still to be fetched."""
    error: str | None
    """Why the last attempt failed; null: it did not."""
    rows_new: int
    """Bars of the range that were not there before."""
    rows_changed: int
    """Bars that were there otherwise."""
    timeframe: str
    candles: int
    """Candles of this timeframe that start in the range."""


class SyncAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for of one symbol."""

    symbol: str
    start: int = msgspec.field(name="from")
    """Start (inclusive) of the range asked for, Unix ms UTC."""
    end: int = msgspec.field(name="to")
    """End (exclusive), Unix ms UTC."""
    missing: list[Span]
    """What of it is to be fetched."""
    requests: int
    """Calls to the provider that this takes."""
    seconds: int
    """How long these take at POLYGON_RATE_LIMIT; they go before all others."""
    worker: bool
    """Whether a worker runs. If not, it is done when one does."""
    result: SyncResult | None
    """null: not done yet; see /api/sync/status/{symbol}."""


class SyncAllAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for of all active symbols."""

    requests: int
    """Calls to the provider that all of it takes."""
    seconds: int
    """How long these take at POLYGON_RATE_LIMIT."""
    worker: bool
    """Whether a worker runs. If not, it is done when one does."""
    done: bool
    """Whether each symbol has its result."""
    symbols: list[SyncAnswer]


def _done(kind: type[msgspec.Struct]) -> ResponseSpec:
    return ResponseSpec(data_container=kind, description="Done while you waited", generate_examples=False)


@post(
    "/api/sync/sync/{symbol:str}",
    operation_id="syncSymbol",
    summary="Fetch a range of one symbol now",
    tags=["sync"],
    status_code=202,
    operation_class=bodies.taking(SyncBody, required=False),
    request_max_body_size=bodies.LONGEST,
    responses={200: _done(SyncAnswer), 400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def sync_symbol(
    request: Request[Any, Any, Any], symbol: SymbolPath, wait: WaitQuery = None
) -> Response[SyncAnswer]:
    """The worker is asked for it before all other work: 202. With `wait`, 200 and the result if it is done in time."""
    parameters.check(request.query_params.dict(), ("wait",))
    serving: Serving = request.app.state.serving
    longest = parameters.number("wait", wait, default=0, least=0, most=LONGEST_WAIT)
    body = await bodies.read(request, SyncBody)
    name = parameters.symbol(symbol)
    asset_type = parameters.asset_type(bodies.given(body.asset_type))
    async with serving.db.connection() as conn:
        (known,) = await ledger.ledgers(conn, await ledger.known(conn, [name]))
    if asset_type not in {None, known.asset_type}:
        raise BadQuery(f"{name} is of asset type {known.asset_type}, not {asset_type}", [known.asset_type])
    found = await _sync(serving, [name], body, longest)
    if not found.symbols:
        raise UnknownSymbol(name)
    return Response(found.symbols[0], status_code=200 if found.done else 202)


@post(
    "/api/sync/sync-all",
    operation_id="syncAll",
    summary="Fetch a range of all active symbols now",
    tags=["sync"],
    status_code=202,
    operation_class=bodies.taking(SyncBody, required=False),
    request_max_body_size=bodies.LONGEST,
    responses={200: _done(SyncAllAnswer), 400: BAD, 503: DOWN},
)
async def sync_all(request: Request[Any, Any, Any], wait: WaitQuery = None) -> Response[SyncAllAnswer]:
    """The same for every active symbol, or for those of one asset type."""
    parameters.check(request.query_params.dict(), ("wait",))
    serving: Serving = request.app.state.serving
    longest = parameters.number("wait", wait, default=0, least=0, most=LONGEST_WAIT)
    body = await bodies.read(request, SyncBody)
    asset_type: AssetType | None = parameters.asset_type(bodies.given(body.asset_type))
    async with serving.db.connection() as conn:
        active = await ledger.ledgers(conn)
    names = [one.symbol for one in active if asset_type in {None, one.asset_type}]
    found = await _sync(serving, names, body, longest)
    return Response(found, status_code=200 if found.done else 202)


async def _sync(serving: Serving, symbols: Sequence[str], body: SyncBody, longest: int) -> SyncAllAnswer:
    """Ask, and wait so many seconds at most."""
    span, timeframe = _span(body), parameters.timeframe(bodies.given(body.timeframe))
    now, settings, engine = serving.clock(), serving.settings, serving.db.engine
    floor = engine.floors(settings.retention, now)[Timeframe.M1]
    waiting = Waiting(serving.db, settings, timeframe)
    async with serving.db.connection() as conn:
        asked = await requesting.planned(conn, settings, symbols, span, now=now, floor=floor)
        if longest:
            await waiting.begin(conn, asked)
        await requesting.ask(conn, asked)
        worker = alive(await heartbeat.worker(conn), now)
    outcomes: dict[str, Outcome] = {}
    if longest and await waiting.wait(asked, longest):
        async with serving.db.connection() as conn:
            outcomes = await waiting.outcomes(conn, asked, serving.clock())
    requests = sum(one.requests for one in asked)
    return SyncAllAnswer(
        requests=requests,
        seconds=requesting.seconds(requests, settings.polygon_rate_limit),
        worker=worker,
        done=bool(longest) and len(outcomes) == len(asked),
        symbols=[_answer(one, outcomes.get(one.known.symbol), timeframe, serving, worker=worker) for one in asked],
    )


def _answer(one: Asked, outcome: Outcome | None, timeframe: Timeframe, serving: Serving, *, worker: bool) -> SyncAnswer:
    result = None
    if outcome is not None:
        result = answer(
            SyncResult, outcome, rows_new=outcome.new, rows_changed=outcome.changed, timeframe=timeframe.value
        )
    return SyncAnswer(
        symbol=one.known.symbol,
        start=to_ms(one.range.start),
        end=to_ms(one.range.end),
        missing=spans(one.missing),
        requests=one.requests,
        seconds=requesting.seconds(one.requests, serving.settings.polygon_rate_limit),
        worker=worker,
        result=result,
    )


def _span(body: SyncBody) -> requesting.Span:
    days, start, end = bodies.given(body.backfill_days), _instant("from", body.start), _instant("to", body.end)
    if days is not None and (start or end):
        raise BadQuery("give backfill_days, or from and to, not both", ["backfill_days", "from", "to"])
    if end is not None and start is None:
        raise BadQuery("to needs from", ["from"])
    return requesting.Span(days=days, start=start, end=end)


def _instant(name: str, value: str | int | UnsetType) -> datetime | None:
    return None if isinstance(value, UnsetType) else parameters.instant(name, str(value))
