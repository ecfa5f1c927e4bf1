"""Waits for what somebody asked for until a worker has fetched it, and tells what came of it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
from psycopg import AsyncConnection, sql

from service import coverage, ledger
from service.db.connect import Database, as_range
from service.ranges import Ranges
from service.requesting import Asked
from service.settings import Settings
from service.timeframes import Timeframe

POLL_SECONDS = 0.25


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it."""

    complete: bool
    """Nothing of the range, as far as it is settled, is still to be fetched."""
    error: str | None
    """Why the last attempt failed; None: it did not."""
    new: int
    """Bars of the range that were not there before."""
    changed: int
    """Bars that were there otherwise."""
    candles: int
    """Candles of the timeframe asked for that start in the range."""


class Waiting:
    """Waits for what was asked for, and counts what it brought. Made before it is asked for: it counts from there."""

    def __init__(self, db: Database, settings: Settings, timeframe: Timeframe) -> None:
        self._db = db
        self._settings = settings
        self._timeframe = timeframe
        self._changes = 0
        self._seen: dict[str, datetime | None] = {}
        self._before: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        self._errors: dict[str, str] = {}

    async def begin(self, conn: AsyncConnection[Any], asked: Sequence[Asked]) -> None:
        """Count what is there; before it is asked for."""
        row = await (await conn.execute("SELECT coalesce(max(id), 0) FROM market_data.changes")).fetchone()
        self._changes = row[0] if row else 0
        self._before = await _count(conn, Timeframe.M1, [(one.known.symbol, one.missing) for one in asked])
        await self._look(conn, asked)
        self._changed.clear()
        self._errors.clear()

    async def wait(self, asked: Sequence[Asked], longest: float) -> bool:
        """Whether all is done, or failed, within so many seconds. Holds no connection meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + longest
        still = list(asked)
        while True:
            async with self._db.connection() as conn:
                done = await self._look(conn, still)
            still = [one for one in still if one.known.symbol not in done]
            left = until - loop.time()
            if not still or left <= 0:
                return not still
            await asyncio.sleep(min(POLL_SECONDS, left))

    async def outcomes(self, conn: AsyncConnection[Any], asked: Sequence[Asked], now: datetime) -> dict[str, Outcome]:
        """What became of it, by symbol; one that was removed meanwhile is left out."""
        settle = timedelta(minutes=self._settings.settle_minutes)
        ledgers = {one.symbol: one for one in await ledger.ledgers(conn, [one.known.symbol for one in asked])}
        bars = await _count(conn, Timeframe.M1, [(one.known.symbol, one.missing) for one in asked])
        candles = await _count(conn, self._timeframe, [(one.known.symbol, Ranges([one.range])) for one in asked])
        found = {}
        for one in asked:
            symbol = one.known.symbol
            after = ledgers.get(symbol)
            if after is not None:
                edge = coverage.settled_to(after, now, settle)  # the minutes since its answer are another call's
                found[symbol] = Outcome(
                    complete=not after.work(Ranges.of(one.range.start, min(one.range.end, edge))),
                    error=self._errors.get(symbol),
                    new=max(0, bars.get(symbol, 0) - self._before.get(symbol, 0)),
                    changed=self._changed.get(symbol, 0),
                    candles=candles.get(symbol, 0),
                )
        return found

    async def _look(self, conn: AsyncConnection[Any], asked: Sequence[Asked]) -> set[str]:
        """Note what was stored since the last look; returns the symbols of which nothing is outstanding any more.

        One that was removed is among them.
        """
        cursor = await conn.execute(
            _LOOK,
            {
                "symbols": [one.known.symbol for one in asked],
                "ranges": [as_range(one.range) for one in asked],
                "since": self._changes,
                "refreshed": self._timeframe is not Timeframe.M1,
            },
        )
        done = {one.known.symbol for one in asked}
        for symbol, waited_for, unrefreshed, at, changed, error in await cursor.fetchall():
            if at != self._seen.get(symbol):
                self._changed[symbol] = self._changed.get(symbol, 0) + (changed or 0)
            self._seen[symbol] = at
            if error is not None:
                self._errors[symbol] = error
            if waited_for or unrefreshed:
                done.discard(symbol)
        return done


async def _count(
    conn: AsyncConnection[Any], timeframe: Timeframe, parts: Sequence[tuple[str, Ranges]]
) -> dict[str, int]:
    """How many candles start within these ranges, by symbol; one without any is left out."""
    flat = [(symbol, part) for symbol, ranges in parts for part in ranges]
    cursor = await conn.execute(
        sql.SQL(_COUNT).format(relation=sql.Identifier("market_data", timeframe.table)),
        {
            "symbols": [symbol for symbol, _ in flat],
            "starts": [part.start for _, part in flat],
            "ends": [part.end for _, part in flat],
        },
    )
    return {symbol: int(count) for symbol, count in await cursor.fetchall()}


_LOOK: LiteralString = """
    SELECT
        symbol,
        NOT isempty((s.requested * tstzmultirange(a.range)) - s.covered - s.unavailable),
        %(refreshed)s AND EXISTS (
            SELECT FROM market_data.pending_refreshes AS p JOIN market_data.changes AS c ON c.id = p.change_id
            WHERE c.symbol = s.symbol AND c.id > %(since)s AND c.range && a.range
        ),
        s.last_sync_at,
        s.last_sync_changed,
        CASE WHEN s.next_attempt_at IS NOT NULL THEN s.error_message END
    FROM unnest(%(symbols)s::text[], %(ranges)s::tstzrange[]) AS a (symbol, range)
    JOIN market_data.sync_state AS s USING (symbol)
"""
_COUNT: LiteralString = """
    SELECT a.symbol, sum(found.candles)
    FROM unnest(%(symbols)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) AS a (symbol, starts, ends)
    CROSS JOIN LATERAL (
        SELECT count(*) AS candles FROM {relation} AS c
        WHERE c.symbol = a.symbol AND c.ts >= a.starts AND c.ts < a.ends
    ) AS found
    GROUP BY a.symbol
"""
