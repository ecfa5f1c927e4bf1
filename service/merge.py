"""Brings answers of the provider into `candles_1m`, many symbols at a time: only what differs is written."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg import AsyncConnection

from service.bars import Bars, from_ms
from service.coverage import MINUTE, Piece
from service.db import binary_copy
from service.db.connect import as_multirange
from service.ranges import Range, Ranges

FEW = 1000
"""Staged bars, up to which any plan of the database will do."""
AGREE_AFTER = timedelta(hours=20)
"""Two re-checks at least so far apart must both miss a settled bar before it goes: they run once a day."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol's share in a merge; a symbol stands in it once."""

    piece: Piece
    bars: Bars
    covered: Ranges
    """Settled before this answer: a bar there that differs leaves a revision behind."""
    settling: Ranges
    """What settles with this answer: bars stored there that it has not are gone, between its first and last bar."""
    recheck: bool
    """Whether settled bars that it has not are to be noted, and removed when noted a day ago already."""

    @property
    def inner(self) -> Ranges:
        """From the first to the last bar of the answer: a cut answer takes nothing away."""
        ts = self.bars.ts
        return Ranges.of(from_ms(int(ts[0])), from_ms(int(ts[-1]))) if len(ts) else Ranges()


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge did to one symbol."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    altered: Range | None = None
    """From the first to the end of the last bar that became new or other, or is gone."""


async def copy_new(conn: AsyncConnection[Any], part: Part) -> Counts | None:
    """Straight into the table, twice as fast as merging; None, and nothing done, where a bar is there already."""
    piece, bars = part.piece, part.bars
    if not await _untouched(conn, piece):
        return None
    try:
        async with conn.transaction(), conn.cursor() as cursor, cursor.copy(_COPY_BARS) as copy:
            await copy.write(binary_copy.encode([(piece.symbol, bars)]))
    except psycopg.errors.UniqueViolation:
        return None
    return Counts(new=len(bars), altered=Range(from_ms(int(bars.ts[0])), from_ms(int(bars.ts[-1])) + MINUTE))


async def _untouched(conn: AsyncConnection[Any], piece: Piece) -> bool:
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM market_data.candles_1m WHERE symbol = %s AND ts >= %s AND ts < %s)",
        (piece.symbol, piece.range.start, piece.range.end),
    )
    return await cursor.fetchone() == (False,)


async def merge(conn: AsyncConnection[Any], parts: Sequence[Part], now: datetime) -> Mapping[str, Counts]:
    """Upsert what differs and remove what is gone, by way of a staging table; counts by symbol.

    An unchanged bar is not written, nor its compressed chunk opened.
    """
    arguments = _arguments(parts) | {"now": now, "agreed": now - AGREE_AFTER}
    await conn.execute(_CREATE_STAGED)
    async with conn.cursor() as cursor, cursor.copy(_COPY_STAGED) as copy:
        await copy.write(binary_copy.encode([(part.piece.symbol, part.bars) for part in parts]))
    if sum(len(part.bars) for part in parts) > FEW:
        # Nobody knows the sizes of the staging table: a nested loop over it would be a thousand times slower.
        await conn.execute("SET LOCAL enable_nestloop = off")
    gone = await _spans(conn, _WITHDRAW, arguments)
    if any(part.recheck for part in parts):
        gone = _joined(gone, await _spans(conn, _REMOVE_MISSED_TWICE, arguments))
        await conn.execute(_NOTE_MISSED, arguments)
    unchanged: dict[str, int] = dict(await _rows(conn, _DROP_UNCHANGED, arguments))
    await conn.execute(_KEEP_REVISIONS, arguments)
    differing = await _rows(conn, _COUNT_STAGED, arguments)
    if differing:
        await conn.execute(_UPSERT_STAGED)
    await conn.execute("TRUNCATE staged_bars")
    counted = {symbol: (total - changed, changed) for symbol, total, changed, _, _ in differing}
    altered = _joined({symbol: Range(first, last + MINUTE) for symbol, _, _, first, last in differing}, gone)
    found = {}
    for part in parts:
        symbol = part.piece.symbol
        new, changed = counted.get(symbol, (0, 0))
        found[symbol] = Counts(
            new=new, changed=changed, unchanged=unchanged.get(symbol, 0), altered=altered.get(symbol)
        )
    return found


def _arguments(parts: Sequence[Part]) -> dict[str, Any]:
    """Parallel arrays, one entry a symbol."""
    return {
        "symbols": [part.piece.symbol for part in parts],
        "start": min(part.piece.range.start for part in parts),
        "end": max(part.piece.range.end for part in parts),
        "starts": [part.piece.range.start for part in parts],
        "ends": [part.piece.range.end for part in parts],
        "covered": [as_multirange(part.covered) for part in parts],
        "settling": [as_multirange(part.settling & part.inner) for part in parts],
        "rechecked": [as_multirange(part.covered & part.inner if part.recheck else Ranges()) for part in parts],
    }


async def _rows(
    conn: AsyncConnection[Any], query: LiteralString, arguments: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query, arguments)).fetchall()


async def _spans(conn: AsyncConnection[Any], query: LiteralString, arguments: Mapping[str, Any]) -> dict[str, Range]:
    return {symbol: Range(first, last + MINUTE) for symbol, first, last in await _rows(conn, query, arguments)}


def _joined(one: Mapping[str, Range], other: Mapping[str, Range]) -> dict[str, Range]:
    found = dict(one)
    for symbol, span in other.items():
        known = found.get(symbol, span)
        found[symbol] = Range(min(known.start, span.start), max(known.end, span.end))
    return found


_COPY_BARS = f"COPY market_data.candles_1m ({', '.join(binary_copy.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_COPY_STAGED = f"COPY staged_bars ({', '.join(binary_copy.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_CREATE_STAGED = """
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_bars (LIKE market_data.candles_1m) ON COMMIT DELETE ROWS
"""
# In each of the following, b is a stored bar, s a staged one, p a symbol's part. The outer bounds of time and the
# symbols let the database skip chunks and use the primary key.
_WITHDRAW = """
    WITH gone AS (
        DELETE FROM market_data.candles_1m AS b
        USING unnest(%(symbols)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
            %(settling)s::tstzmultirange[]) AS p (symbol, starts, ends, settling)
        WHERE b.symbol = p.symbol AND b.ts >= p.starts AND b.ts < p.ends AND p.settling @> b.ts
            AND b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
            AND NOT EXISTS (SELECT FROM staged_bars AS s WHERE s.symbol = b.symbol AND s.ts = b.ts)
        RETURNING b.symbol, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades
    ), kept AS (
        INSERT INTO market_data.bar_revisions (symbol, ts, open, high, low, close, volume, vwap, trades)
        SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM gone
    )
    SELECT symbol, min(ts), max(ts) FROM gone GROUP BY symbol
"""
_REMOVE_MISSED_TWICE = """
    WITH agreed AS (
        DELETE FROM market_data.missed_bars AS m
        USING unnest(%(symbols)s::text[], %(rechecked)s::tstzmultirange[]) AS p (symbol, rechecked)
        WHERE m.symbol = p.symbol AND p.rechecked @> m.ts AND m.missed_at <= %(agreed)s
            AND NOT EXISTS (SELECT FROM staged_bars AS s WHERE s.symbol = m.symbol AND s.ts = m.ts)
        RETURNING m.symbol, m.ts
    ), gone AS (
        DELETE FROM market_data.candles_1m AS b USING agreed
        WHERE b.symbol = agreed.symbol AND b.ts = agreed.ts
            AND b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
        RETURNING b.symbol, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades
    ), kept AS (
        INSERT INTO market_data.bar_revisions (symbol, ts, open, high, low, close, volume, vwap, trades)
        SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM gone
    )
    SELECT symbol, min(ts), max(ts) FROM gone GROUP BY symbol
"""
_NOTE_MISSED = """
    WITH parts AS (
        SELECT symbol, rechecked
        FROM unnest(%(symbols)s::text[], %(rechecked)s::tstzmultirange[]) AS p (symbol, rechecked)
    ), back AS (
        DELETE FROM market_data.missed_bars AS m USING parts AS p
        WHERE m.symbol = p.symbol AND p.rechecked @> m.ts
            AND EXISTS (SELECT FROM staged_bars AS s WHERE s.symbol = m.symbol AND s.ts = m.ts)
    )
    INSERT INTO market_data.missed_bars (symbol, ts, missed_at)
    SELECT b.symbol, b.ts, %(now)s
    FROM market_data.candles_1m AS b JOIN parts AS p ON p.symbol = b.symbol AND p.rechecked @> b.ts
    WHERE b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
        AND NOT EXISTS (SELECT FROM staged_bars AS s WHERE s.symbol = b.symbol AND s.ts = b.ts)
    ON CONFLICT (symbol, ts) DO NOTHING
"""
_DROP_UNCHANGED = """
    WITH unchanged AS (
        DELETE FROM staged_bars AS s USING market_data.candles_1m AS b
        WHERE b.symbol = s.symbol AND b.ts = s.ts
            AND b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
            AND (s.open, s.high, s.low, s.close, s.volume, s.vwap, s.trades)
                IS NOT DISTINCT FROM (b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades)
        RETURNING s.symbol
    )
    SELECT symbol, count(*) FROM unchanged GROUP BY symbol
"""
_KEEP_REVISIONS = """
    INSERT INTO market_data.bar_revisions (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT b.symbol, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades
    FROM staged_bars AS s
    JOIN unnest(%(symbols)s::text[], %(covered)s::tstzmultirange[]) AS p (symbol, covered)
        ON p.symbol = s.symbol AND p.covered @> s.ts
    JOIN market_data.candles_1m AS b ON b.symbol = s.symbol AND b.ts = s.ts
    WHERE b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
"""
_COUNT_STAGED = """
    SELECT s.symbol, count(*), count(b.ts), min(s.ts), max(s.ts)
    FROM staged_bars AS s
    LEFT JOIN market_data.candles_1m AS b
        ON b.symbol = s.symbol AND b.ts = s.ts
        AND b.symbol = ANY(%(symbols)s) AND b.ts >= %(start)s AND b.ts < %(end)s
    GROUP BY s.symbol
"""
_UPSERT_STAGED = """
    INSERT INTO market_data.candles_1m AS b (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM staged_bars ORDER BY symbol, ts
    ON CONFLICT (symbol, ts) DO UPDATE SET
        open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
        volume = excluded.volume, vwap = excluded.vwap, trades = excluded.trades
"""
