"""The ledger and the few other facts kept about the work: what is asked for, covered, failed, and from which source."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from psycopg import AsyncConnection

from service.coverage import Ledger
from service.db.connect import as_range, as_ranges
from service.errors import SourceMismatch, UnknownSymbol
from service.ranges import Range

COLUMNS = (
    "symbol, ticker, asset_type,"
    # What is tracked is wanted up to any present.
    " wanted + CASE WHEN tracked_from IS NULL THEN '{}' ELSE tstzmultirange(tstzrange(tracked_from, '9999-01-01')) END,"
    " covered, unavailable, first_bar, last_bar"
)
REQUESTS = "candlewick_requests"
"""The channel of the database on which a worker hears that somebody asked for something."""
FROM = "FROM market_data.sync_state JOIN market_data.instruments USING (symbol)"


async def ledgers(conn: AsyncConnection[Any], symbols: Sequence[str] | None = None) -> list[Ledger]:
    """The ledger of these symbols, in the order given; of all active ones by symbol when None."""
    cursor = await conn.execute(
        f"SELECT {COLUMNS} {FROM}"
        " WHERE symbol = ANY(%(symbols)s) OR (%(symbols)s::text[] IS NULL AND active)"
        " ORDER BY array_position(%(symbols)s, symbol), symbol",
        {"symbols": None if symbols is None else list(symbols)},
    )
    return [from_row(row) for row in await cursor.fetchall()]


async def known(conn: AsyncConnection[Any], symbols: Sequence[str]) -> list[str]:
    """The symbols in our spelling, each once, in the order given; UnknownSymbol with the nearest names."""
    spelled = list(dict.fromkeys(symbol.upper() for symbol in symbols))
    rows = await conn.execute("SELECT symbol FROM market_data.instruments WHERE symbol = ANY(%s)", (spelled,))
    there = {name for (name,) in await rows.fetchall()}
    for symbol in spelled:
        if symbol not in there:
            raise await unknown(conn, symbol)
    return spelled


async def unknown(conn: AsyncConnection[Any], symbol: str) -> UnknownSymbol:
    """The error to raise for a symbol that is not there, with the nearest names."""
    rows = await (await conn.execute("SELECT symbol FROM market_data.instruments ORDER BY symbol")).fetchall()
    return UnknownSymbol(symbol, get_close_matches(symbol.upper(), [name for (name,) in rows], cutoff=0.5))


async def want(conn: AsyncConnection[Any], symbols: Sequence[str], asked: Range) -> None:
    """Ask for a range: widens `wanted` of these symbols; asking twice changes nothing."""
    await conn.execute(
        "UPDATE market_data.sync_state SET wanted = wanted + tstzmultirange(%(asked)s)"
        " WHERE symbol = ANY(%(symbols)s) AND NOT wanted @> %(asked)s",
        {"symbols": list(symbols), "asked": as_range(asked)},
    )


async def forget_unavailable(conn: AsyncConnection[Any], symbols: Sequence[str], asked: Range) -> None:
    """Ask once more for what could not be had of a range: the plan may reach further by now, a bar may be mended."""
    await conn.execute(
        "UPDATE market_data.sync_state SET unavailable = unavailable - tstzmultirange(%s) WHERE symbol = ANY(%s)",
        (as_range(asked), list(symbols)),
    )


async def source(conn: AsyncConnection[Any]) -> str | None:
    """Where the bars of this database come from: polygon, replay:synthetic, replay:csv; None before the first bar."""
    row = await (await conn.execute("SELECT source FROM market_data.installation")).fetchone()
    return row[0] if row else None


async def claim_source(conn: AsyncConnection[Any], claimed: str) -> None:
    """Record where the bars of this database come from; SourceMismatch if it holds those of another source."""
    await conn.execute("UPDATE market_data.installation SET source = %s WHERE source IS NULL", (claimed,))
    held = await source(conn)
    if held != claimed:
        raise SourceMismatch(
            f"this database holds bars of {held!r} and the provider answers as {claimed!r}: sources are never mixed; "
            "use another database or DATA_DIR, or correct POLYGON_BASE_URL"
        )


async def locked(conn: AsyncConnection[Any], symbols: Sequence[str]) -> dict[str, Ledger]:
    """The ledgers of these symbols, held to the end of the transaction; a removed symbol is left out."""
    cursor = await conn.execute(
        f"SELECT {COLUMNS} {FROM} WHERE symbol = ANY(%s) ORDER BY symbol FOR UPDATE OF sync_state", (list(symbols),)
    )
    return {row[0]: from_row(row) for row in await cursor.fetchall()}


def from_row(row: Sequence[Any]) -> Ledger:
    """A ledger from the columns of `COLUMNS`, in their order."""
    symbol, ticker, asset_type, wanted, covered, unavailable, first_bar, last_bar = row
    return Ledger(
        symbol=symbol,
        ticker=ticker,
        asset_type=asset_type,
        wanted=as_ranges(wanted),
        covered=as_ranges(covered),
        unavailable=as_ranges(unavailable),
        first_bar=first_bar,
        last_bar=last_bar,
    )


async def recent_calls(conn: AsyncConnection[Any], since: datetime) -> list[datetime]:
    """When the provider was called since then, as recorded by `record_call`."""
    cursor = await conn.execute("SELECT at FROM market_data.provider_calls WHERE at > %s ORDER BY at", (since,))
    return [row[0] for row in await cursor.fetchall()]


async def record_call(conn: AsyncConnection[Any], at: datetime, keep: timedelta) -> None:
    """Record a call that is about to be made, and forget those older than `keep`."""
    await conn.execute(
        "WITH old AS (DELETE FROM market_data.provider_calls WHERE at < %(at)s - %(keep)s)"
        " INSERT INTO market_data.provider_calls (at) VALUES (%(at)s)",
        {"at": at, "keep": keep},
    )


async def note_failure(
    conn: AsyncConnection[Any],
    symbol: str,
    message: str,
    *,
    now: datetime,
    refused: bool = False,
    rest: timedelta | None = None,
    longest: timedelta = timedelta(minutes=10),
) -> int:
    """Keep why a symbol's last attempt failed, and when to try again; returns how often in a row it failed.

    refused: the plan does not cover it. rest: until the next attempt; None: a minute, doubled each time, at most
    `longest`.
    """
    cursor = await conn.execute(
        "UPDATE market_data.sync_state SET status = %(status)s, error_message = %(message)s, failures = failures + 1,"
        " requested = '{}', next_attempt_at = %(now)s + coalesce(%(rest)s,"
        " least(%(longest)s, interval '1 minute' * 2 ^ least(failures, 10)) * (0.75 + 0.25 * random()))"
        " WHERE symbol = %(symbol)s RETURNING failures",
        {
            "status": "refused" if refused else "failed",
            "message": message,
            "now": now,
            "rest": rest,
            "longest": longest,
            "symbol": symbol,
        },
    )
    row = await cursor.fetchone()
    return row[0] if row else 0


async def request(conn: AsyncConnection[Any], symbols: Sequence[str], asked: Range) -> None:
    """Ask for a range and wait for it: it goes before all other work, and a worker hears of it at once."""
    async with conn.transaction():
        await want(conn, symbols, asked)
        await conn.execute(
            "UPDATE market_data.sync_state SET requested = requested + tstzmultirange(%(asked)s),"
            " next_attempt_at = NULL WHERE symbol = ANY(%(symbols)s)",
            {"symbols": list(symbols), "asked": as_range(asked)},
        )
        await call_worker(conn)


async def call_worker(conn: AsyncConnection[Any]) -> None:
    """Let the worker look at once, if one runs: there is something new to do."""
    await conn.execute(f"NOTIFY {REQUESTS}")


async def failed_since(conn: AsyncConnection[Any], symbols: Sequence[str], since: datetime) -> dict[str, str]:
    """Why the last attempt of these symbols failed, for those that are to be tried again after an instant."""
    cursor = await conn.execute(
        "SELECT symbol, error_message FROM market_data.sync_state"
        " WHERE symbol = ANY(%s) AND error_message IS NOT NULL AND next_attempt_at > %s",
        (list(symbols), since),
    )
    return dict(await cursor.fetchall())
