"""/api/sync/status and /api/sync/health: how far every symbol is, and whether all is well."""

from typing import Any

import msgspec
import psycopg
from litestar import Request, Response, get
from litestar.openapi.datastructures import ResponseSpec

from service import detail, status
from service.api import parameters
from service.api.answers import BAD, DOWN, UNKNOWN, answer, ms
from service.api.problems import MissingRange
from service.api.serving import Serving
from service.api.symbols import SymbolPath
from service.bars import to_ms
from service.errors import DatabaseError
from service.ranges import Ranges


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A half-open range of time."""

    start: int = msgspec.field(name="from")
    """Start (inclusive), Unix ms UTC."""
    end: int = msgspec.field(name="to")
    """End (exclusive), Unix ms UTC."""


class SymbolState(msgspec.Struct, frozen=True, kw_only=True):
    """How one symbol does. Every instant is Unix ms UTC."""

    symbol: str
    ticker: str
    name: str
    asset_type: str
    active: bool
    state: str
    """inactive. new: nothing answered yet. backfilling: the edge is fine, older work waits. ok. behind: its lag is over
    LAG_ALERT. failed: see `error`. refused: the plan does not cover it; tried again daily."""
    market_open: bool
    first_bar: int | None
    last_bar: int | None
    """Start of the last one-minute bar."""
    last_sync_at: int | None
    """When the provider last gave a good answer."""
    rows_new: int | None
    """Bars that this answer brought."""
    rows_changed: int | None
    """Bars that it corrected."""
    lag_seconds: int | None
    """Open market time that should be there and is not; null: no worker keeps it up to date."""
    missing_minutes: int
    """Asked for, settled, and not there."""
    error: str | None
    """Why the last attempt failed."""
    next_attempt_at: int | None
    """After a failure: not before."""


class TotalsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All symbols together."""

    symbols: int
    active: int
    states: dict[str, int]
    """How many symbols are in each state."""
    missing_minutes: int
    worst_lag_seconds: int | None
    worst_symbol: str | None
    requests: int
    """Calls that the outstanding older work takes."""
    seconds: int
    """How long these calls take at POLYGON_RATE_LIMIT, beside those at the edge."""
    expected_lag_seconds: int
    """How far behind the edge must be at POLYGON_RATE_LIMIT, so many symbols being open; 0: it has no limit."""


class StatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How far everything is. Every instant is Unix ms UTC."""

    now: int
    totals: TotalsAnswer
    symbols: list[SymbolState]
    """By symbol."""


class TimeframeState(msgspec.Struct, frozen=True, kw_only=True):
    """How far one timeframe reaches. Every instant is Unix ms UTC."""

    timeframe: str
    last_candle: int | None
    """Start of the last one; null without any."""
    materialized_to: int | None
    """Up to where (exclusive) candles are stored; above it they are computed when read. null: nowhere yet."""


class DetailAnswer(SymbolState, frozen=True, kw_only=True):
    """One symbol in full. Every instant is Unix ms UTC."""

    wanted: list[Span]
    """Asked for, up to now."""
    covered: list[Span]
    """Fetched and settled."""
    missing: list[MissingRange]
    """What of the wanted time is settled and not there."""
    progress: float
    """How much of the wanted time that is settled needs no call any more, 0 to 1."""
    rechecked_at: int | None
    """When what was settled was last fetched anew."""
    revisions: int
    """Settled bars that the provider corrected."""
    rejected: int
    """What the provider sent and no bar can be."""
    timeframes: list[TimeframeState]
    """Finest first."""


class SyncHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the data are up to date."""

    status: str
    """ok (200) or unhealthy (503)."""
    reasons: list[str]
    """What is wrong, and what to do; empty when all is well."""
    worker_alive: bool
    provider: str | None
    """ok, unreachable or unauthorized; null without a worker to say so."""
    late_symbols: int
    """Symbols whose lag is over LAG_ALERT."""
    worst_lag_seconds: int | None
    worst_symbol: str | None


@get(
    "/api/sync/status",
    operation_id="getStatus",
    summary="How far every symbol is",
    tags=["sync"],
    responses={400: BAD, 503: DOWN},
)
async def get_status(request: Request[Any, Any, Any]) -> StatusAnswer:
    """Totals and every symbol, all of one moment."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    now = serving.clock()
    async with serving.db.connection() as conn:
        found = await status.overview(conn, serving.db.engine, serving.settings, now)
    return StatusAnswer(
        now=to_ms(now),
        totals=answer(TotalsAnswer, found.totals),
        symbols=[answer(SymbolState, one) for one in found.symbols],
    )


@get(
    "/api/sync/status/{symbol:str}",
    operation_id="getSymbolStatus",
    summary="How far one symbol is, in full",
    tags=["sync"],
    responses={400: BAD, 404: UNKNOWN, 503: DOWN},
)
async def get_symbol_status(request: Request[Any, Any, Any], symbol: SymbolPath) -> DetailAnswer:
    """What is covered, what is missing and why, and how far each timeframe reaches."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    name = parameters.symbol(symbol)
    async with serving.db.connection() as conn:
        found = await detail.detail(conn, serving.db.engine, serving.settings, name, serving.clock())
    return answer(
        DetailAnswer,
        found.status,
        wanted=spans(found.wanted),
        covered=spans(found.covered),
        missing=[
            MissingRange(start=to_ms(gap.range.start), end=to_ms(gap.range.end), reason=gap.reason)
            for gap in found.missing
        ],
        progress=found.progress,
        rechecked_at=ms(found.rechecked_at),
        revisions=found.revisions,
        rejected=found.rejected,
        timeframes=[answer(TimeframeState, one, timeframe=one.timeframe.value) for one in found.levels],
    )


@get(
    "/api/sync/health",
    operation_id="getSyncHealth",
    summary="Whether the data are up to date",
    tags=["sync"],
    responses={
        400: BAD,
        503: ResponseSpec(data_container=SyncHealth, description="Something is wrong", generate_examples=False),
    },
)
async def get_sync_health(request: Request[Any, Any, Any]) -> Response[SyncHealth]:
    """200 while a worker runs, reaches the provider and is up to date; else 503 in the same shape, with the reasons."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    try:
        async with serving.db.connection() as conn:
            found = await status.health(conn, serving.settings, serving.clock())
    except (DatabaseError, psycopg.OperationalError, psycopg.InterfaceError):
        found = status.UNREACHABLE
    body = answer(SyncHealth, found, status="unhealthy" if found.reasons else "ok")
    return Response(body, status_code=503 if found.reasons else 200)


def spans(ranges: Ranges) -> list[Span]:
    """The ranges as Unix ms."""
    return [Span(start=to_ms(part.start), end=to_ms(part.end)) for part in ranges]
