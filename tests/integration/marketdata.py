"""What the tests of store, refresh, query and API share: invented bars, and every aggregate against its own bars."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from service.bars import Bars, RejectedBar, to_ms
from service.coverage import MINUTE, Piece
from service.db.connect import Database
from service.db.engines import Engine
from service.db.migrate import migrate
from service.db.preflight import checked
from service.ledger import want
from service.ranges import Range
from service.store import Answered, Stored, store
from service.timeframes import Timeframe

SETTLE = timedelta(minutes=15)
SOURCE = "replay:csv"


def at(text: str) -> datetime:
    """An instant in UTC: `at("2024-03-05 12:07")`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def minutes(start: datetime, end: datetime, step: int = 1) -> list[datetime]:
    """Every step-th minute of `[start, end)`."""
    return [start + place * MINUTE for place in range(0, (end - start) // MINUTE, step)]


def invent(times: Iterable[datetime], seed: int = 0, *, volume: bool = True, vwap: bool = True) -> Bars:
    """Bars at these minutes. The same minute and seed give the same bar, whatever stands beside it."""
    ts = np.array([to_ms(one) for one in sorted(times)], np.int64)
    drawn = np.stack([_dice(ts // 60_000, 10 * seed + column) for column in range(6)], axis=1)
    prices = 1 + drawn[:, :4] / 100_000
    nothing = np.full(len(ts), np.nan)
    return Bars(
        ts=ts,
        open=prices[:, 0],
        high=prices.max(axis=1, initial=0),
        low=prices.min(axis=1, initial=9),
        close=prices[:, 1],
        volume=np.where(drawn[:, 4] % 10 == 0, 0, drawn[:, 4] / 8) if volume else nothing,
        vwap=prices[:, 2] if volume and vwap else nothing,
        trades=drawn[:, 5].astype(np.int64) if volume else np.full(len(ts), -1, np.int64),
    )


def _dice(minutes: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A whole number from 1 to 9999 for each minute: the finalizer of splitmix64."""
    mixed = (minutes + 31_000_000_000 * (seed + 1)).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed % np.uint64(9999) + np.uint64(1)).astype(np.float64)


async def put(
    conn: AsyncConnection[Any],
    engine: Engine,
    symbol: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    bars: Bars | None = None,
    rejected: Iterable[RejectedBar] = (),
    source: str = SOURCE,
    kind: Literal["edge", "backfill", "recheck"] = "backfill",
) -> Stored:
    """Ask for a range and store an answer to it: a bar for every minute unless bars are given."""
    await want(conn, [symbol], Range(start, end))
    answer = Answered(
        piece=Piece(symbol=symbol, ticker="", range=Range(start, end)),
        bars=invent(minutes(start, min(end, now))) if bars is None else bars,
        rejected=list(rejected),
        source=source,
        asked_at=now,
        kind=kind,
    )
    (stored,) = await store(conn, engine, [answer], settle=SETTLE)
    return stored


NOW = at("2024-03-05 12:07:30")
"""The clock of everything that `fill` stores."""
LONG_AGO = Range(at("2022-03-01 00:00"), at("2022-03-03 00:00"))
LATELY = Range(at("2024-03-01 00:00"), at("2024-03-05 12:07"))
SETTLED = at("2024-03-05 11:52")
REJECTED = at("2024-03-04 03:30")
CORRECTED = Range(at("2024-03-03 22:00"), at("2024-03-03 22:30"))


async def fill(db: Database) -> None:
    """One symbol for each thing that an answer can say of itself, as of `NOW`.

    EURUSD: every minute of two days in 2022 and of the last days, nothing asked for in between.
    SPX500: no volume; one session, settled up to its last bar. GBPUSD: asked for and not fetched before 03-03.
    USDJPY: one minute rejected. XAUUSD: corrected, and the correction is not refreshed yet. BTCUSD: asked for, no bar.
    """
    async with db, db.connection() as conn:
        await only_active(conn, "EURUSD")
        for start, end in (LATELY, LONG_AGO):
            await put(conn, db.engine, "EURUSD", start, end, now=NOW)
        session = minutes(at("2024-03-04 14:30"), at("2024-03-04 21:00"))
        index = invent(session, volume=False)
        await put(conn, db.engine, "SPX500", at("2024-03-04 00:00"), LATELY.end, now=NOW, bars=index)
        await put(conn, db.engine, "GBPUSD", at("2024-03-03 00:00"), LATELY.end, now=NOW)
        await want(conn, ["GBPUSD"], LATELY)
        bar = RejectedBar(ts=to_ms(REJECTED), raw="{}", reason="no close")
        kept = invent(minute for minute in minutes(at("2024-03-04 00:00"), LATELY.end) if minute != REJECTED)
        await put(conn, db.engine, "USDJPY", at("2024-03-04 00:00"), LATELY.end, now=NOW, bars=kept, rejected=[bar])
        await put(conn, db.engine, "XAUUSD", at("2024-03-03 00:00"), LATELY.end, now=NOW)
        await want(conn, ["BTCUSD"], LATELY)
        await db.engine.refresh(conn, {}, NOW)
        await put(conn, db.engine, "XAUUSD", *CORRECTED, now=NOW, bars=invent(minutes(*CORRECTED), 9))


@contextmanager
def filled(server: Any) -> Iterator[Database]:  # noqa: ANN401 - the class is the conftest's own
    """A database of its own on this server, filled; for many tests that only read."""
    with filled_with(server, fill) as db:
        yield db


@contextmanager
def filled_with(server: Any, what: Callable[[Database], Coroutine[Any, Any, None]]) -> Iterator[Database]:  # noqa: ANN401 - as above
    """The same, filled otherwise."""
    name = f"candlewick_{os.getpid()}_filled"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        url = server.url(name)
        migrate(url, server.engine)
        asyncio.run(what(checked(url, server.engine)))
        yield checked(url, server.engine)
    finally:
        server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def only_active(conn: AsyncConnection[Any], *symbols: str) -> None:
    """Leave these symbols active, and no other."""
    await conn.execute("UPDATE market_data.instruments SET active = symbol = ANY(%s)", (list(symbols),))


async def wrong_candles(conn: AsyncConnection[Any], *, by_level: bool = False) -> list[tuple[Any, ...]]:
    """The candles of every level, served or computed from the bars, that the other side does not have or has otherwise.

    by_level: computed from the level below instead, which comes to the same if that one is right, and is cheaper.
    Left out is what is noted as still to refresh. Prices and counts are compared exactly, volumes and their averages
    to nine digits. Each row names level, symbol, start, and the values served and computed.
    """
    found: list[tuple[Any, ...]] = []
    for finer, timeframe in pairwise(Timeframe):
        query = sql.SQL(_COMPARE).format(
            level=sql.Identifier("market_data", timeframe.table),
            source=sql.Identifier("market_data", (finer if by_level else Timeframe.M1).table),
        )
        cursor = await conn.execute(query, {"length": timeframe.length, "name": timeframe.value})
        found += await cursor.fetchall()
    return found


_COMPARE = """
    WITH computed AS (
        SELECT
            symbol,
            date_bin(%(length)s, ts, TIMESTAMPTZ '1970-01-01 00:00+00') AS ts,
            (array_agg(open ORDER BY ts))[1] AS open,
            max(high) AS high,
            min(low) AS low,
            (array_agg(close ORDER BY ts DESC))[1] AS close,
            sum(volume) AS volume,
            CASE WHEN bool_or(volume > 0 AND vwap IS NULL) IS NOT TRUE
                THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
            sum(trades)::bigint AS trades
        FROM {source}
        GROUP BY 1, 2
    ), pending AS (
        SELECT symbol, range FROM market_data.changes
        WHERE id IN (SELECT change_id FROM market_data.pending_refreshes)
    )
    SELECT %(name)s, symbol, ts, s, c
    FROM {level} AS s FULL JOIN computed AS c USING (symbol, ts)
    WHERE NOT EXISTS (
        SELECT FROM pending AS p
        WHERE p.symbol = coalesce(s.symbol, c.symbol) AND p.range && tstzrange(ts, ts + %(length)s)
    ) AND (
        s.symbol IS NULL OR c.symbol IS NULL
        OR (s.open, s.high, s.low, s.close, s.trades) IS DISTINCT FROM (c.open, c.high, c.low, c.close, c.trades)
        OR (s.volume IS NULL) <> (c.volume IS NULL) OR abs(s.volume - c.volume) > 1e-9 * abs(c.volume)
        OR (s.vwap IS NULL) <> (c.vwap IS NULL) OR abs(s.vwap - c.vwap) > 1e-9 * abs(c.vwap)
    )
    ORDER BY ts, symbol
    LIMIT 5
"""
