"""What the worker reads and writes between two passes: who is tracked, what is due, what failed, what a plan gives."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from service.agenda import Tracked
from service.db.connect import as_range, as_ranges
from service.entitlements import Entitlement
from service.ranges import Range, Ranges


async def track(
    conn: AsyncConnection[Any], since: datetime, now: datetime, symbols: Sequence[str] | None = None
) -> None:
    """From now on keep every active symbol up to date that is not yet, its history from `since` on included.

    symbols: only of these.
    """
    await conn.execute(
        "UPDATE market_data.sync_state AS s SET"
        " tracked_from = %(since)s, tracked_since = %(now)s, wanted = s.wanted + tstzmultirange(%(wanted)s)"
        " FROM market_data.instruments AS i WHERE i.symbol = s.symbol AND i.active AND s.tracked_from IS NULL"
        " AND (%(symbols)s::text[] IS NULL OR i.symbol = ANY(%(symbols)s))",
        {
            "since": since,
            "now": now,
            "wanted": as_range(Range(since, now)),
            "symbols": None if symbols is None else list(symbols),
        },
    )
    await conn.execute(
        "UPDATE market_data.sync_state AS s SET tracked_from = NULL, tracked_since = NULL, asked_to = NULL"
        " FROM market_data.instruments AS i"
        " WHERE i.symbol = s.symbol AND NOT i.active AND s.tracked_from IS NOT NULL"
    )


async def due(
    conn: AsyncConnection[Any], within: Range, *, requested_only: bool = False, symbols: Sequence[str] | None = None
) -> list[Tracked]:
    """Every symbol that is tracked or has something to fetch within a range; of these symbols, or of all.

    requested_only: only those for which somebody waits.
    """
    cursor = await conn.execute(
        _DUE,
        {
            "within": as_range(within),
            "requested_only": requested_only,
            "symbols": None if symbols is None else list(symbols),
        },
        binary=True,
    )
    none = Ranges()
    found = []
    for row in await cursor.fetchall():
        *facts, work, requested, recheck = row
        sets = [as_ranges(one) if one is not None else none for one in (work, requested, recheck)]
        found.append(Tracked(**dict(zip(_FACTS, facts, strict=True)), work=sets[0], requested=sets[1], recheck=sets[2]))
    return found


async def any_requested(conn: AsyncConnection[Any], symbols: Sequence[str]) -> bool:
    """Whether somebody still waits for one of these symbols."""
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM market_data.sync_state WHERE symbol = ANY(%s) AND NOT isempty(requested))",
        (list(symbols),),
    )
    return await cursor.fetchone() == (True,)


async def answer_requests(conn: AsyncConnection[Any], within: Range) -> None:
    """Forget what somebody waited for and what needs no call (any more)."""
    await conn.execute(
        "UPDATE market_data.sync_state SET requested = '{}' WHERE NOT isempty(requested)"
        " AND isempty((requested * tstzmultirange(%(within)s)) - covered - unavailable)",
        {"within": as_range(within)},
    )


async def mark_rechecks(conn: AsyncConnection[Any], within: Range, now: datetime, every: timedelta) -> int:
    """What is covered within a range is to be fetched anew, of each tracked symbol whose last re-check is so long ago.

    Returns how many symbols were marked.
    """
    cursor = await conn.execute(
        "UPDATE market_data.sync_state SET recheck = covered * tstzmultirange(%(within)s)"
        " WHERE tracked_from IS NOT NULL AND isempty(recheck) AND NOT isempty(covered * tstzmultirange(%(within)s))"
        " AND coalesce(rechecked_at, tracked_since) <= %(before)s",
        {"within": as_range(within), "before": now - every},
    )
    return cursor.rowcount


async def entitlements(conn: AsyncConnection[Any]) -> dict[str, Entitlement]:
    """What the plan gives, by asset class; one not recognised yet is absent."""
    cursor = await conn.execute("SELECT asset_type, kind, delay, seen_at FROM market_data.entitlements")
    return {
        asset_type: Entitlement(kind=kind, delay=delay, seen_at=seen_at)
        for asset_type, kind, delay, seen_at in await cursor.fetchall()
    }


async def save_entitlements(conn: AsyncConnection[Any], found: Mapping[str, Entitlement]) -> None:
    """Keep what was recognised."""
    for asset_type, one in found.items():
        await conn.execute(
            "INSERT INTO market_data.entitlements (asset_type, kind, delay, seen_at)"
            " VALUES (%(asset_type)s, %(kind)s, %(delay)s, %(seen_at)s)"
            " ON CONFLICT (asset_type) DO UPDATE"
            " SET kind = excluded.kind, delay = excluded.delay, seen_at = excluded.seen_at",
            {"asset_type": asset_type, "kind": one.kind, "delay": one.delay, "seen_at": one.seen_at},
        )


async def mark_unavailable(conn: AsyncConnection[Any], symbol: str, below: datetime) -> None:
    """The plan has nothing of this symbol before an instant: what is wanted there is not asked for again."""
    await conn.execute(
        "UPDATE market_data.sync_state SET unavailable = unavailable"
        " + (wanted * tstzmultirange(tstzrange(NULL, %(below)s)) - covered)"
        " WHERE symbol = %(symbol)s",
        {"symbol": symbol, "below": below},
    )


async def mark_clipped(conn: AsyncConnection[Any]) -> list[str]:
    """Where a plan's history begins, answers that reach further back are cut without a word: not empty, unavailable.

    It shows when three symbols or more of a class were answered from a week or more before their first bar on, and have
    it on the same day. Returns the symbols whose ledger was put right.
    """
    cursor = await conn.execute(_MARK_CLIPPED)
    return [symbol for (symbol,) in await cursor.fetchall()]


_MARK_CLIPPED = """
    WITH late AS (
        SELECT s.symbol, i.asset_type, date_trunc('day', s.first_bar) AS begins
        FROM market_data.sync_state AS s JOIN market_data.instruments AS i USING (symbol)
        WHERE lower(s.covered) < s.first_bar - interval '7 days'
    ), clipped AS (
        SELECT symbol, tstzmultirange(tstzrange(NULL, begins)) AS before
        FROM late JOIN (
            SELECT asset_type, begins FROM late GROUP BY asset_type, begins HAVING count(*) >= 3
        ) AS alike USING (asset_type, begins)
    )
    UPDATE market_data.sync_state AS s
    SET covered = s.covered - c.before, unavailable = s.unavailable + (s.covered * c.before)
    FROM clipped AS c WHERE c.symbol = s.symbol
    RETURNING s.symbol
"""
_FACTS = (
    "symbol",
    "ticker",
    "asset_type",
    "tracked_from",
    "covered_end",
    "last_bar",
    "asked_to",
    "asked_at",
    "next_attempt_at",
)
# NULL instead of an empty set: with thousands of symbols, reading sets is most of the cost.
_DUE: LiteralString = """
    WITH sets AS (
        SELECT
            symbol, ticker, asset_type, tracked_from, upper(covered) AS covered_end, last_bar, asked_to, asked_at,
            next_attempt_at,
            (wanted * tstzmultirange(%(within)s)) - covered - unavailable AS work,
            (requested * tstzmultirange(%(within)s)) - covered - unavailable AS requested,
            recheck * tstzmultirange(%(within)s) AS recheck
        FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
        WHERE (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
            AND (NOT %(requested_only)s OR NOT isempty(requested))
    )
    SELECT
        symbol, ticker, asset_type, tracked_from, covered_end, last_bar, asked_to, asked_at, next_attempt_at,
        nullif(work, '{}'), nullif(requested, '{}'), nullif(recheck, '{}')
    FROM sets
    WHERE tracked_from IS NOT NULL OR NOT isempty(work) OR NOT isempty(requested) OR NOT isempty(recheck)
    ORDER BY symbol
"""
