"""One symbol's status in full: what is covered, what is missing and why, and how far each timeframe reaches."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
from psycopg import AsyncConnection, sql

from service import coverage, ledger, tracking
from service.coverage import Ledger, Missing, minute_floor
from service.db.engines import Engine
from service.judgement import Outstanding, SymbolStatus, horizon, judged, lags, older_until
from service.ranges import Range, Ranges
from service.settings import Settings
from service.status import facts, snapshot
from service.timeframes import EPOCH, Timeframe

LOOK_BACK = 10
"""The last candle of a timeframe is looked for in so many buckets: that of the last bar may have been withdrawn."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """How far one timeframe reaches. Instants are aware UTC."""

    timeframe: Timeframe
    last_candle: datetime | None
    """Start of the last one; None: there is none."""
    materialized_to: datetime | None
    """Up to where (exclusive) candles are stored; above it they are computed when read. None: nowhere yet."""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol in full. Ranges are half-open, aware UTC."""

    status: SymbolStatus
    wanted: Ranges
    """Asked for, up to now."""
    covered: Ranges
    """Fetched and settled."""
    missing: list[Missing]
    """What of the wanted span, settled, is not there, each range with its reason."""
    progress: float
    """How much of what is wanted, kept and settled needs no call any more, 0 to 1; 1 where nothing is wanted."""
    rechecked_at: datetime | None
    revisions: int
    """Settled bars that the provider corrected."""
    rejected: int
    """What the provider sent and no bar can be."""
    levels: list[Level]
    """Finest first."""


async def detail(conn: AsyncConnection[Any], engine: Engine, settings: Settings, symbol: str, now: datetime) -> Detail:
    """One symbol's status in full as of `now`, aware UTC; UnknownSymbol with the nearest names."""
    settle = timedelta(minutes=settings.settle_minutes)
    floors = engine.floors(settings.retention, now)
    async with snapshot(conn):
        (symbol,) = await ledger.known(conn, [symbol])
        beside = await facts(conn, symbol)
        plan = await tracking.entitlements(conn)
        (known,) = await ledger.ledgers(conn, [symbol])
        rechecked_at, revisions, rejected = await _counts(conn, symbol, now)
        levels = await _levels(conn, symbol, known.last_bar, await engine.materialized(conn))
    one = next(each for each in beside if each.symbol == symbol)
    bottom = floors[Timeframe.M1] or EPOCH
    until = horizon(one, now, settle)
    work = known.work(Ranges.of(bottom, until))
    outstanding = Outstanding(missing=work.length, older=work & Ranges.of(bottom, older_until(one, now, settle)))
    return Detail(
        status=judged(one, lags(beside, plan, now)[symbol], outstanding, now, settings.lag_alert),
        wanted=known.wanted & Ranges.of(EPOCH, minute_floor(now)),
        covered=known.covered,
        missing=_missing(known, floors, until),
        progress=_progress(known.wanted & Ranges.of(bottom, until), work),
        rechecked_at=rechecked_at,
        revisions=revisions,
        rejected=rejected,
        levels=levels,
    )


def _missing(known: Ledger, floors: Mapping[Timeframe, datetime | None], until: datetime) -> list[Missing]:
    if known.wanted.start is None:
        return []
    asked = Range(known.wanted.start, until)
    found = coverage.missing(known, asked, floors=floors, timeframe=Timeframe.M1, settled=until, unrefreshed=Ranges())
    return [one for one in found if one.reason != "never requested"]


def _progress(wanted: Ranges, work: Ranges) -> float:
    return 1 - work.length / wanted.length if wanted else 1.0


async def _counts(conn: AsyncConnection[Any], symbol: str, now: datetime) -> tuple[datetime | None, int, int]:
    cursor = await conn.execute(_COUNTS, {"symbol": symbol, "start": EPOCH, "end": now})
    row = await cursor.fetchone()
    return row or (None, 0, 0)


async def _levels(
    conn: AsyncConnection[Any],
    symbol: str,
    last_bar: datetime | None,
    materialized: Mapping[Timeframe, datetime | None],
) -> list[Level]:
    found = []
    for timeframe in Timeframe:
        last = None if last_bar is None else await _last_candle(conn, symbol, timeframe, last_bar)
        whole_to = None if last is None else last + timeframe.length
        found.append(
            Level(timeframe=timeframe, last_candle=last, materialized_to=materialized.get(timeframe, whole_to))
        )
    return found


async def _last_candle(
    conn: AsyncConnection[Any], symbol: str, timeframe: Timeframe, last_bar: datetime
) -> datetime | None:
    query = sql.SQL(_LAST_CANDLE).format(relation=sql.Identifier("market_data", timeframe.table))
    end = timeframe.floor(last_bar) + timeframe.length
    cursor = await conn.execute(query, {"symbol": symbol, "start": end - LOOK_BACK * timeframe.length, "end": end})
    row = await cursor.fetchone()
    return row[0] if row else None


_COUNTS: LiteralString = """
    SELECT
        rechecked_at,
        (
            SELECT count(*) FROM market_data.bar_revisions AS r
            WHERE r.symbol = s.symbol AND r.ts >= %(start)s AND r.ts < %(end)s
        ),
        (
            SELECT count(*) FROM market_data.rejected_bars AS r
            WHERE r.symbol = s.symbol AND r.ts >= %(start)s AND r.ts < %(end)s
        )
    FROM market_data.sync_state AS s
    WHERE symbol = %(symbol)s
"""
_LAST_CANDLE: LiteralString = """
    SELECT max(ts) FROM {relation} WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
"""
