"""Reads how far every symbol is, in one snapshot and a few queries, and judges it; for the operator."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
from psycopg import AsyncConnection

from service import heartbeat, tracking
from service.db.connect import as_ranges
from service.db.engines import Engine
from service.entitlements import Entitlement
from service.heartbeat import ProviderState
from service.judgement import (
    Facts,
    Outstanding,
    SymbolStatus,
    Totals,
    expected_lag,
    horizon,
    judged,
    lags,
    older_until,
    totals,
)
from service.market_hours import is_open, market_of
from service.ranges import Ranges
from service.reasons import Late, alive, reasons
from service.settings import Settings
from service.timeframes import EPOCH, Timeframe


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All symbols, and what they amount to."""

    totals: Totals
    symbols: list[SymbolStatus]
    """By symbol."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all is well."""

    reasons: list[str]
    """Why not, each with what to do; empty: all is well."""
    worker_alive: bool
    provider: ProviderState | None
    """How the provider answers; None without a worker to say so."""
    late_symbols: int
    """Symbols whose lag is over LAG_ALERT."""
    worst_lag_seconds: int | None
    worst_symbol: str | None


UNREACHABLE = Health(
    reasons=["the database does not answer: see whether it runs"],
    worker_alive=False,
    provider=None,
    late_symbols=0,
    worst_lag_seconds=None,
    worst_symbol=None,
)


async def overview(conn: AsyncConnection[Any], engine: Engine, settings: Settings, now: datetime) -> Overview:
    """Every symbol's status as of `now`, aware UTC. Three queries, however many symbols there are."""
    async with snapshot(conn):
        known = await facts(conn)
        plan = await tracking.entitlements(conn)
        outstanding = await _outstanding(
            conn, known, engine.floors(settings.retention, now)[Timeframe.M1], settings, now
        )
    lag = lags(known, plan, now)
    found = [judged(one, lag[one.symbol], outstanding.get(one.symbol), now, settings.lag_alert) for one in known]
    return Overview(totals=totals(found, outstanding, settings.polygon_rate_limit), symbols=found)


async def health(conn: AsyncConnection[Any], settings: Settings, now: datetime) -> Health:
    """Whether a worker runs, reaches the provider, and is up to date, as of `now`, aware UTC."""
    async with snapshot(conn):
        known = await facts(conn)
        plan = await tracking.entitlements(conn)
        worker = await heartbeat.worker(conn)
    lag = sorted(
        (Late(symbol=one.symbol, lag=behind, trouble=one.error) for one, behind in _tracked(known, plan, now)),
        key=lambda one: one.lag,
        reverse=True,
    )
    late = [one for one in lag if one.lag > settings.lag_alert]
    open_now = sum(one.active and is_open(market_of(one.asset_type, one.ticker), now) for one in known)
    expected = timedelta(seconds=expected_lag(open_now, settings.polygon_rate_limit, older=True))
    lives = alive(worker, now)
    return Health(
        reasons=reasons(worker, late, now, alert=settings.lag_alert, expected=expected),
        worker_alive=lives,
        provider=worker.provider if worker is not None and lives else None,
        late_symbols=len(late),
        worst_lag_seconds=round(lag[0].lag.total_seconds()) if lag else None,
        worst_symbol=lag[0].symbol if lag else None,
    )


def _tracked(known: Sequence[Facts], plan: Mapping[str, Entitlement], now: datetime) -> list[tuple[Facts, timedelta]]:
    found = lags(known, plan, now)
    return [(one, lag) for one in known if (lag := found[one.symbol]) is not None]


@asynccontextmanager
async def snapshot(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """All that is read within is of one moment."""
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


async def facts(conn: AsyncConnection[Any], beside: str | None = None) -> list[Facts]:
    """What decides about every symbol, by symbol; beside: only about those of this symbol's asset class."""
    cursor = await conn.execute(_FACTS, {"beside": beside}, binary=True)
    return [Facts(**dict(zip(Facts.__struct_fields__, row, strict=True))) for row in await cursor.fetchall()]


async def _outstanding(
    conn: AsyncConnection[Any], known: Sequence[Facts], floor: datetime | None, settings: Settings, now: datetime
) -> dict[str, Outstanding]:
    """What is asked for, settled, at or above the floor and not there, of the symbols that have such."""
    settle = timedelta(minutes=settings.settle_minutes)
    bottom = floor or EPOCH
    cursor = await conn.execute(
        _MISSING,
        {
            "symbols": [one.symbol for one in known],
            "until": [max(bottom, horizon(one, now, settle)) for one in known],
            "older": [max(bottom, older_until(one, now, settle)) for one in known],
            "floor": bottom,
        },
        binary=True,
    )
    return {
        symbol: Outstanding(missing=length, older=Ranges() if older is None else as_ranges(older))
        for symbol, length, older in await cursor.fetchall()
    }


# In the order of the fields of `Facts`.
_FACTS: LiteralString = """
    SELECT
        symbol, ticker, name, asset_type, active, status, first_bar, last_bar, upper(covered), tracked_from,
        tracked_since, asked_to, last_sync_at, last_sync_rows, last_sync_changed, error_message, next_attempt_at
    FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
    WHERE %(beside)s::text IS NULL
        OR asset_type = (SELECT asset_type FROM market_data.instruments WHERE symbol = %(beside)s)
    ORDER BY symbol
"""
# What is tracked is wanted up to any present. NULL instead of an empty set: with thousands of symbols, reading sets is
# most of the cost.
_MISSING: LiteralString = """
    WITH asked AS (
        SELECT symbol, until, older
        FROM unnest(%(symbols)s::text[], %(until)s::timestamptz[], %(older)s::timestamptz[]) AS a (symbol, until, older)
    ), sets AS (
        SELECT
            symbol,
            (
                wanted + CASE WHEN tracked_from IS NULL THEN '{}'
                    ELSE tstzmultirange(tstzrange(tracked_from, '9999-01-01')) END
            ) * tstzmultirange(tstzrange(%(floor)s, until)) - covered - unavailable AS missing,
            older
        FROM asked JOIN market_data.sync_state USING (symbol)
    )
    SELECT
        symbol,
        (SELECT sum(upper(part) - lower(part)) FROM unnest(missing) AS part),
        nullif(missing * tstzmultirange(tstzrange(NULL, older)), '{}')
    FROM sets
    WHERE NOT isempty(missing)
"""
