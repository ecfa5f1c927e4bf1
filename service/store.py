"""Writes what was fetched: bars, what changed, and the ledger, in one transaction; all of it or nothing."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection

from service import ledger
from service.bars import Bars, RejectedBar, from_ms
from service.coverage import MINUTE, Ledger, Piece, settled_edge
from service.db import binary_copy
from service.db.connect import WRITER_LOCK, as_multirange, as_range
from service.db.engines import Engine
from service.ranges import Range, Ranges


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How many bars a write found new, changed, unchanged, and could not take."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


async def store_piece(
    conn: AsyncConnection[Any],
    engine: Engine,
    piece: Piece,
    bars: Bars,
    rejected: Sequence[RejectedBar],
    *,
    source: str,
    now: datetime,
    settle: timedelta,
) -> Stored:
    """Store one piece's whole answer: bars that differ, what changed, then the ledger. One transaction.

    bars: within the piece, ended minutes only. Storing the same again changes nothing.
    now: when the answer was asked for; coverage reaches up to the edge that was settled then.
    Raises SourceMismatch, and psycopg's errors; then nothing is stored.
    """
    async with conn.transaction():
        await ledger.claim_source(conn, source)
        known = await ledger.locked(conn, piece.symbol)
        last_bar = max(filter(None, [known.last_bar, from_ms(int(bars.ts[-1])) if len(bars) else None]), default=None)
        settled = Ranges.of(piece.range.start, min(piece.range.end, settled_edge(now, last_bar, settle)))
        stored, altered = await _write(conn, piece, bars, known, settled)
        await _reject(conn, piece.symbol, rejected)
        if altered is not None:
            await _announce(conn, engine, piece.symbol, altered)
        await _cover(conn, known, bars, rejected, settled, rows=stored.new + stored.changed)
        return stored + Stored(rejected=len(rejected))


async def _write(
    conn: AsyncConnection[Any], piece: Piece, bars: Bars, known: Ledger, settled: Ranges
) -> tuple[Stored, Range | None]:
    """Upsert; returns the counts and the range of bars that became new or other."""
    if not len(bars):
        return Stored(), None
    first, last = int(bars.ts[0]), int(bars.ts[-1])
    rows = binary_copy.encode(piece.symbol, bars)
    if await _untouched(conn, piece) and await _copy_new(conn, rows):
        return Stored(new=len(bars)), Range(from_ms(first), from_ms(last) + MINUTE)
    stored, merged = await _merge(conn, piece, rows, known)
    withdrawn = await _withdraw(conn, piece, bars, settled - known.covered)
    return stored, _hull(merged, withdrawn)


async def _untouched(conn: AsyncConnection[Any], piece: Piece) -> bool:
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM market_data.candles_1m WHERE symbol = %s AND ts >= %s AND ts < %s)",
        (piece.symbol, piece.range.start, piece.range.end),
    )
    return await cursor.fetchone() == (False,)


async def _copy_new(conn: AsyncConnection[Any], rows: bytes) -> bool:
    """Straight into the table: twice as fast as merging; False if a bar was there after all."""
    try:
        async with conn.transaction(), conn.cursor() as cursor, cursor.copy(_COPY_BARS) as copy:
            await copy.write(rows)
    except psycopg.errors.UniqueViolation:
        return False
    return True


async def _merge(conn: AsyncConnection[Any], piece: Piece, rows: bytes, known: Ledger) -> tuple[Stored, Range | None]:
    """By way of a staging table, so that an unchanged bar is not written (nor its compressed chunk opened)."""
    within = {"symbol": piece.symbol, "start": piece.range.start, "end": piece.range.end}
    await conn.execute(_CREATE_STAGED)
    async with conn.cursor() as cursor, cursor.copy(_COPY_STAGED) as copy:
        await copy.write(rows)
    unchanged = (await conn.execute(_DROP_UNCHANGED, within)).rowcount
    await conn.execute(_KEEP_REVISIONS, within | {"covered": as_multirange(known.covered)})
    total, changed, first, last = await _one(await conn.execute(_COUNT_STAGED, within))
    if not total:
        return Stored(unchanged=unchanged), None
    await conn.execute(_UPSERT_STAGED)
    await conn.execute("TRUNCATE staged_bars")
    return Stored(new=total - changed, changed=changed, unchanged=unchanged), Range(first, last + MINUTE)


async def _withdraw(conn: AsyncConnection[Any], piece: Piece, bars: Bars, settling: Ranges) -> Range | None:
    """Remove what an earlier answer had and this one, with which its minutes settle, has not; returns its range.

    Only between the first and the last bar of the answer: a cut answer takes nothing away.
    """
    within = settling & Ranges.of(from_ms(int(bars.ts[0])), from_ms(int(bars.ts[-1])))
    cursor = await conn.execute(
        _WITHDRAW,
        {
            "symbol": piece.symbol,
            "start": piece.range.start,
            "end": piece.range.end,
            "within": as_multirange(within),
            "kept": [from_ms(int(ts)) for ts in bars.ts],
        },
    )
    first, last = await _one(cursor)
    return None if first is None else Range(first, last + MINUTE)


def _hull(one: Range | None, other: Range | None) -> Range | None:
    if one is None or other is None:
        return one or other
    return Range(min(one.start, other.start), max(one.end, other.end))


async def _reject(conn: AsyncConnection[Any], symbol: str, rejected: Sequence[RejectedBar]) -> None:
    for bar in rejected:
        await conn.execute(
            "INSERT INTO market_data.rejected_bars (symbol, ts, raw, reason) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (symbol, ts) DO UPDATE SET raw = excluded.raw, reason = excluded.reason, rejected_at = now()",
            (symbol, from_ms(bar.ts), bar.raw, bar.reason),
        )


async def _announce(conn: AsyncConnection[Any], engine: Engine, symbol: str, altered: Range) -> None:
    """Derive or note what follows from the altered bars. From here to the commit transactions go one by one."""
    await engine.derive(conn, symbol, altered)
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (WRITER_LOCK,))
    (change_id,) = await _one(
        await conn.execute(
            "INSERT INTO market_data.changes (symbol, range) VALUES (%s, %s) RETURNING id", (symbol, as_range(altered))
        )
    )
    await engine.note(conn, change_id)


async def _cover(
    conn: AsyncConnection[Any],
    known: Ledger,
    bars: Bars,
    rejected: Sequence[RejectedBar],
    settled: Ranges,
    *,
    rows: int,
) -> None:
    received = [from_ms(int(bars.ts[place])) for place in (0, -1)] if len(bars) else []
    refused = Ranges((from_ms(bar.ts), from_ms(bar.ts) + MINUTE) for bar in rejected) & settled
    await conn.execute(
        "UPDATE market_data.sync_state SET covered = %(covered)s, unavailable = %(unavailable)s,"
        " first_bar = %(first_bar)s, last_bar = %(last_bar)s, status = 'ok', error_message = NULL,"
        " next_attempt_at = NULL, last_sync_at = now(), last_sync_rows = %(rows)s WHERE symbol = %(symbol)s",
        {
            "symbol": known.symbol,
            "covered": as_multirange((known.covered | settled) - refused),
            "unavailable": as_multirange((known.unavailable - settled) | refused),
            "first_bar": min(filter(None, [known.first_bar, *received]), default=None),
            "last_bar": max(filter(None, [known.last_bar, *received]), default=None),
            "rows": rows,
        },
    )


async def _one(cursor: psycopg.AsyncCursor[Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] = await cursor.fetchone() or ()
    return row


_COPY_BARS = f"COPY market_data.candles_1m ({', '.join(binary_copy.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_COPY_STAGED = f"COPY staged_bars ({', '.join(binary_copy.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_CREATE_STAGED = """
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_bars (LIKE market_data.candles_1m) ON COMMIT DELETE ROWS
"""
_DROP_UNCHANGED = """
    DELETE FROM staged_bars AS s USING market_data.candles_1m AS b
    WHERE b.symbol = %(symbol)s AND b.ts >= %(start)s AND b.ts < %(end)s AND s.ts = b.ts
        AND (s.open, s.high, s.low, s.close, s.volume, s.vwap, s.trades)
            IS NOT DISTINCT FROM (b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades)
"""
_KEEP_REVISIONS = """
    INSERT INTO market_data.bar_revisions (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT b.symbol, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades
    FROM market_data.candles_1m AS b JOIN staged_bars AS s ON s.ts = b.ts
    WHERE b.symbol = %(symbol)s AND b.ts >= %(start)s AND b.ts < %(end)s AND %(covered)s::tstzmultirange @> b.ts
"""
_WITHDRAW = """
    WITH gone AS (
        DELETE FROM market_data.candles_1m
        WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
            AND %(within)s::tstzmultirange @> ts AND NOT ts = ANY(%(kept)s)
        RETURNING symbol, ts, open, high, low, close, volume, vwap, trades
    ), kept AS (
        INSERT INTO market_data.bar_revisions (symbol, ts, open, high, low, close, volume, vwap, trades)
        SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM gone
    )
    SELECT min(ts), max(ts) FROM gone
"""
_COUNT_STAGED = """
    SELECT count(*), count(b.ts), min(s.ts), max(s.ts)
    FROM staged_bars AS s
    LEFT JOIN market_data.candles_1m AS b
        ON b.ts = s.ts AND b.symbol = %(symbol)s AND b.ts >= %(start)s AND b.ts < %(end)s
"""
_UPSERT_STAGED = """
    INSERT INTO market_data.candles_1m AS b (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM staged_bars ORDER BY ts
    ON CONFLICT (symbol, ts) DO UPDATE SET
        open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
        volume = excluded.volume, vwap = excluded.vwap, trades = excluded.trades
"""
